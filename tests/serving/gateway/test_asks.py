from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.asks import Ask, parse
from serving.gateway.errors import ApiError
from serving.gateway.traceparent import TraceParent

MESSAGES = [{"role": "user", "content": "Hello"}]


def read(raw: bytes, route: Any = "chat") -> Ask:
    return parse(route, raw, tenant="t", model="m", request_id="r", trace=TraceParent.new())


def body(**fields: Any) -> bytes:
    return orjson.dumps({"messages": MESSAGES} | fields)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b"{}", "messages"),
        (body(messages=[]), "messages"),
        (body(messages="Hello"), "messages"),
        (body(messages=["Hello"]), r"messages\[0\]"),
        (body(messages=[{"content": "no role"}]), r"messages\[0\]"),
        (body(stream="yes"), "stream"),
        (body(stream=True, stream_options=1), "stream_options"),
        (body(conversation=7), "conversation"),
        (body(conversation=""), "conversation"),
        (body(user="x" * 201), "user"),
        (body(knowledge="yes"), "knowledge"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(raw: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says) as refused:
        read(raw)
    assert refused.value.status == 400
    assert refused.value.fields["type"] == "invalid_request_error"


def test_another_model_does_not_exist() -> None:
    with pytest.raises(ApiError, match="gpt-9") as refused:
        read(body(model="gpt-9"))
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_what_is_the_gateways_own_is_not_sent_on() -> None:
    ask = read(body(conversation="c", knowledge=False, temperature=0.5, user="u"))
    assert ask.body == {"model": "m", "messages": MESSAGES, "temperature": 0.5, "user": "u"}
    assert (ask.conversation, ask.knowledge, ask.user) == ("c", False, "u")


def test_usage_is_always_asked_for_and_remembered_whether_the_client_did() -> None:
    assert not read(body(stream=True)).wants_usage
    ask = read(body(stream=True, stream_options={"include_usage": True, "other": 1}))
    assert ask.wants_usage
    assert ask.body["stream_options"] == {"include_usage": True, "other": 1}


def test_a_conversation_belongs_to_its_tenant_and_stays_itself() -> None:
    first = read(body(conversation="c"))
    later = read(body(conversation="c", messages=[{"role": "user", "content": "More"}]))
    assert first.owner == later.owner
    assert read(body()).owner == read(body()).owner != first.owner


def test_what_the_gateway_puts_before_it_makes_nobody_another_one() -> None:
    ask = read(body())
    ask.body["messages"] = [{"role": "system", "content": "Passages."}, *MESSAGES]
    assert ask.owner == read(body()).owner
    assert ask.prefix != read(body()).prefix  # a replica's cache does see it


def status(raw: bytes) -> int:
    try:
        read(raw)
    except ApiError as error:
        return error.status
    return 200


@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    assert status(raw) in (400, 404)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_no_json_breaks_it(value: Any) -> None:
    for raw in (value, {"messages": value}, {"messages": MESSAGES, "stream_options": value}):
        try:
            text = orjson.dumps(raw)
        except TypeError:  # an integer of more than 64 bits
            continue
        assert status(text) in (200, 400, 404)
