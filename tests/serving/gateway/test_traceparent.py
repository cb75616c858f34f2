"""W3C Trace Context: what is written can be read, and what is not valid begins a new trace."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.traceparent import TraceParent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"

ids = st.builds(
    TraceParent,
    st.integers(1, 2**128 - 1).map(lambda n: f"{n:032x}"),
    st.integers(1, 2**64 - 1).map(lambda n: f"{n:016x}"),
    st.booleans(),
)


@given(ids)
def test_what_is_written_is_read(trace: TraceParent) -> None:
    assert TraceParent.parse(str(trace)) == trace
    assert len(str(trace)) == 55
    child = trace.child()
    assert child.trace_id == trace.trace_id
    assert child.span_id != trace.span_id
    assert child.sampled == trace.sampled
    assert TraceParent.parse(str(child)) == child


@given(st.text() | st.text(alphabet="0123456789abcdef-", max_size=60))
def test_nothing_else_is_taken_and_nothing_raises(text: str) -> None:
    found = TraceParent.parse(text)
    if found is not None:
        assert found.trace_id in text
        assert TraceParent.parse(str(found)) == found


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        GOOD.upper(),
        GOOD.replace("00-", "ff-", 1),
        GOOD + "-more",
        GOOD + "0",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}",
        f"0-{TRACE}-{SPAN}-01",
    ],
)
def test_what_the_standard_calls_invalid(header: str | None) -> None:
    assert TraceParent.parse(header) is None
    assert TraceParent.serve(header).trace_id != TRACE


def test_what_the_standard_calls_valid() -> None:
    assert TraceParent.parse(GOOD) == (TRACE, SPAN, True)
    assert TraceParent.parse(f" {GOOD}\t") == (TRACE, SPAN, True)
    assert TraceParent.parse(GOOD[:-2] + "00") == (TRACE, SPAN, False)
    assert TraceParent.parse(GOOD[:-2] + "02") == (TRACE, SPAN, False)  # a flag that is not ours
    assert TraceParent.parse(GOOD.replace("00-", "cc-", 1) + "-what-comes") == (TRACE, SPAN, True)


def test_a_request_goes_on_in_its_callers_trace() -> None:
    served = TraceParent.serve(GOOD)
    assert served.trace_id == TRACE
    assert served.span_id != SPAN
    assert TraceParent.serve(None) != TraceParent.serve(None)
