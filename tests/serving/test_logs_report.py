"""Errors in logs: found, counted, grouped whatever their numbers, and read as a stream."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import log_lines, logs_report
from serving.cli.logs import since_of
from serving.errors import InputError
from serving.gateway.logs import configure, log_request, request_logger
from serving.gateway.traceparent import TraceParent
from serving.log_lines import lines, mask
from serving.logs_report import BUCKETS, report

ROOT = Path(__file__).resolve().parents[2]
BEGAN = datetime(2026, 11, 26, 12, tzinfo=UTC)


def line(after_s: float = 0, **changes: Any) -> bytes:
    at = (BEGAN + timedelta(seconds=after_s)).isoformat(timespec="milliseconds")[:-6] + "Z"
    event: dict[str, Any] = {
        "@timestamp": at,
        "log.level": "info",
        "message": "request",
        "http": {"response": {"status_code": 200}},
        "labels": {"track": "stable", "replica": "vllm-0"},
    }
    return json.dumps(event | changes, separators=(",", ":")).encode() + b"\n"


def failed(after_s: float = 0, message: str = "late", **changes: Any) -> bytes:
    error = {"type": "TimeoutError", "message": message}
    status = {"http": {"response": {"status_code": 504}}}
    return line(after_s, **{"log.level": "error", "error": error} | status | changes)


def test_errors_are_counted_grouped_and_placed() -> None:
    found = report(
        [
            *(line(i) for i in range(90)),
            *(failed(i, f"replica {i} late after {i / 7} s") for i in range(6)),
            failed(50, "replica 3 late after 1 s", labels={"track": "canary", "replica": "vllm-9"}),
            line(60, **{"log.level": "error"}, http={"response": {"status_code": 503}}),
            line(61, **{"log.level": "warning", "error": {"type": "Refused"}}),
            b"not json\n",
            b'{"json": "but no ECS"}\n',
            b"[]\n",
            b"\n",
        ]
    )
    assert (found.lines, found.requests, found.errors, found.foreign) == (103, 99, 8, 3)
    late, refused = found.groups
    assert (late.type, late.message) == ("TimeoutError", "replica <n> late after <n> s")
    assert (late.count, late.share) == (7, 7 / 99)
    assert late.first == "2026-11-26T12:00:00.000Z"
    assert late.last == "2026-11-26T12:00:50.000Z"
    assert late.example == "replica 3 late after 1 s"
    assert late.tracks == {"stable": 6, "canary": 1}
    assert late.replicas == {"vllm-0": 6, "vllm-9": 1}
    assert (refused.type, refused.message) == ("HTTP 503", "request")
    assert sum(late.per_bucket) == 7


def test_what_the_gateway_writes_is_understood() -> None:
    stream = io.BytesIO()
    configure(stream=stream)
    trace = TraceParent.new()
    logger = request_logger()
    for status, error in ((200, None), (500, ConnectionError("no route to 10.0.0.7:8000"))):
        log_request(
            logger,
            trace=trace,
            method="POST",
            path="/v1/completions",
            status=status,
            duration_s=0.1,
            labels={"track": "canary", "replica": "vllm-1"},
            error=error,
        )
    found = report(stream.getvalue().splitlines(keepends=True))
    (group,) = found.groups
    assert found.requests == 2
    assert (group.type, group.message) == ("ConnectionError", "no route to <n>")
    assert group.trace_id == trace.trace_id
    assert group.share == 0.5
    assert group.tracks == {"canary": 1}


def test_fields_with_dots_and_other_forms_of_time() -> None:
    event = {
        "@timestamp": "2026-11-26T14:00:00.123456+02:00",
        "log": {"level": "ERROR", "logger": "worker"},
        "message": "lost",
        "http.response.status_code": 200,
        "labels.track": "stable",
    }
    found = report([json.dumps(event).encode()])
    (group,) = found.groups
    assert (group.type, group.first) == ("worker", "2026-11-26T12:00:00.123Z")
    assert found.requests == 1
    assert group.tracks == {"stable": 1}


def test_since_leaves_out_what_is_older() -> None:
    every = [line(0), failed(10), line(20), failed(30)]
    found = report(every, since=BEGAN + timedelta(seconds=15))
    assert (found.requests, found.errors, found.lines) == (2, 1, 4)


def test_the_most_frequent_come_first() -> None:
    every = [failed(i, f"kind {'abc'[k]}") for k in range(3) for i in range(k + 1)]
    found = report(every, top=2)
    assert [group.message for group in found.groups] == ["kind c", "kind b"]
    assert found.errors == 6


events = st.builds(
    lambda after_s, level, status, message, error: line(
        after_s,
        **(
            {"log.level": level, "message": message}
            | ({"error": {"message": error}} if error else {})
        ),
        **({"http": {"response": {"status_code": status}}} if status else {}),
    ),
    st.integers(0, 10**7),
    st.sampled_from(["info", "warning", "error", "critical"]),
    st.sampled_from([None, 200, 404, 500, 503]),
    st.text(max_size=20) | st.sampled_from(["error", 'status_code":5', "fatal"]),
    st.none() | st.text(min_size=1, max_size=5),
)


@given(st.lists(events, max_size=20))
@settings(max_examples=100, deadline=None)
def test_the_short_way_sees_what_parsing_sees(every: list[bytes]) -> None:
    quick = report(every, top=100)
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(logs_report, "_is_plain", lambda line: False)
        assert report(every, top=100) == quick
    assert report(every[::-1], top=100).errors == quick.errors


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_buckets_keep_every_error_whatever_the_order(times_s: list[int]) -> None:
    (group,) = report([failed(t) for t in times_s]).groups
    assert sum(group.per_bucket) == len(times_s)
    assert len(group.per_bucket) == len(group.sparkline) <= BUCKETS
    assert group.per_bucket[0] > 0
    assert group.per_bucket[-1] > 0


def test_the_sparkline_is_as_high_as_its_buckets() -> None:
    (group,) = report([failed(t) for t in (0, 2, 2, 2, 2, 2, 2, 2, 2)]).groups
    assert group.sparkline == "▁ █"


def test_there_is_a_limit_of_different_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_report, "MOST_GROUPS", 2)
    found = report([failed(0, "kind " + "abcd"[i % 4]) for i in range(8)])
    assert (len(found.groups), found.ungrouped, found.errors) == (2, 4, 8)


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("replica 12 late after 0.25 s", "replica <n> late after <n> s"),
        ("10.0.0.7:8000 refused", "<n> refused"),
        ("at 0x7f3e9c0d2a40", "at <hex>"),
        ("request chatcmpl-8f3a2b99c1d24e55 failed", "request chatcmpl-<id> failed"),
        ("req_123e4567-e89b-42d3-a456-426614174000", "req_<id>"),
        ("took 1.5e-05 s, 12,345 tokens", "took <n> s, <n> tokens"),
        ("CUDA out of memory", "CUDA out of memory"),
        ("facade and decade", "facade and decade"),
        ("gpu0 of vllm-7f9c4d5b6-x2x9z", "gpu<n> of vllm-<id>-x<n>x<n>z"),
    ],
)
def test_masking(message: str, masked: str) -> None:
    assert mask(message) == masked


@given(st.text() | st.text(alphabet="0123456789abcdefx-_.: ", max_size=80))
@settings(max_examples=300)
def test_masking_twice_changes_nothing_and_leaves_no_digit(text: str) -> None:
    once = mask(text)
    assert mask(once) == once
    assert not set(once) & set("0123456789")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["late after", "of", "replica", "for user"]), min_size=1, max_size=4),
    st.data(),
)
def test_what_differs_by_numbers_and_ids_is_one_group(
    words: list[str], data: st.DataObject
) -> None:
    number = st.integers(0, 10**15).map(str) | st.floats(0, 1e9).map(lambda x: f"{x:.3f}")
    ids = st.uuids(version=4).map(str)
    kinds = [data.draw(st.sampled_from([number, ids])) for _ in words]

    def drawn() -> str:
        return " ".join(
            f"{word} {data.draw(kind)}" for word, kind in zip(words, kinds, strict=True)
        )

    assert mask(drawn()) == mask(drawn())


def test_long_messages_are_cut_where_they_are_alike() -> None:
    def message(n: int) -> str:
        return " ".join(f"block {n + i} at {hex(n * i)}" for i in range(150))

    assert mask(message(1)) == mask(message(10**9))
    assert len(mask(message(1))) == 300
    assert len(mask("1 " * 10**6)) <= 300


def test_files_packed_files_and_long_lines(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.log", tmp_path / "b.log"
    plain.write_bytes(line() + b"x" * (3 * log_lines.LONGEST_BYTES) + b"\n" + line())
    packed.write_bytes(gzip.compress(failed() * 10))
    seen: list[int] = []
    found = report(lines([str(plain), str(packed)], seen.append))
    assert (found.lines, found.requests, found.errors, found.foreign) == (13, 12, 10, 1)
    assert seen[-1] == plain.stat().st_size + packed.stat().st_size
    assert seen == sorted(seen)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_logs() -> None:
    import tracemalloc

    def many(n: int) -> Iterator[bytes]:
        return (failed(i % 10**6, f"attempt {i}") if i % 5 == 0 else line(i) for i in range(n))

    def peak(n: int) -> int:
        mask.cache_clear()
        tracemalloc.start()
        report(many(n))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few = peak(10_000)  # enough to fill the cache of masked messages
    assert peak(30_000) < 1.2 * few


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604800)]
)
def test_since(text: str, seconds: int) -> None:
    assert since_of(text, BEGAN) == BEGAN - timedelta(seconds=seconds)
    assert since_of("2026-11-26T12:00Z", BEGAN) == BEGAN
    assert since_of("2026-11-26T12:00", BEGAN) == BEGAN


@pytest.mark.parametrize("text", ["", "yesterday", "2 h", "99999999999d", "2026-13-01"])
def test_since_that_is_no_time(text: str) -> None:
    with pytest.raises(InputError, match="--since"):
        since_of(text, BEGAN)


def run(*arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", "logs", *arguments],
        input=given,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log.gz"
    path.write_bytes(gzip.compress(line() * 97 + failed(1, "try 7") * 3 + b"Started\n"))
    done = run("errors", str(path))
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "TimeoutError: try <n>" in text
    assert "3.00%" in text
    assert text.splitlines()[-1] == (
        "3 errors, 100 requests in 101 lines; 1 lines are no ECS JSON and were skipped."
    )
    piped = run("errors", "-", "--json", given=failed())
    told = json.loads(piped.stdout)
    assert told["groups"][0]["type"] == "TimeoutError"
    assert told["errors"] == 1


def test_no_errors_are_said_in_one_line() -> None:
    done = run("errors", "-", given=line())
    assert done.stdout.decode() == "0 errors, 1 requests in 1 lines.\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["errors", "/no/such.log"], "cannot read /no/such.log (No such file"),
        (["errors", "/"], "cannot read /"),
        (["errors", "-", "--top", "0"], "--top(=0)"),
        (["errors", "-", "-"], "given twice"),
        (["errors", "-", "--since", "soon"], "--since(='soon')"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str) -> None:
    done = run(*arguments, given=b"")
    assert done.returncode == 2
    assert says in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(line() * 1000)[:-20])
    done = run("errors", str(path))
    assert done.returncode == 2
    assert b"to its end" in done.stderr


def test_help_has_examples() -> None:
    told = " ".join(run("errors", "--help").stdout.decode().split())
    assert "Examples: serving logs errors gateway.log" in told
