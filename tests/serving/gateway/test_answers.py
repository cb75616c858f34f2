from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import answers, streams
from serving.gateway.asks import Ask, parse
from serving.gateway.traceparent import TraceParent

QUESTION = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def ask(tenant: str = "shop", route: Any = "chat", **fields: Any) -> Ask:
    body = (QUESTION if route == "chat" else {"prompt": "Hello", "temperature": 0}) | fields
    return parse(
        route, orjson.dumps(body), tenant=tenant, model="m", request_id="r", trace=TraceParent.new()
    )


def key(of: Ask, revision: str = "1", knowledge: str = "") -> str | None:
    return answers.key(of, "m", revision, knowledge)


def test_the_same_question_has_the_same_key_streamed_or_not() -> None:
    assert key(ask()) == key(ask(stream=True)) == key(ask(stream=True, user="anna"))
    assert key(ask()) is not None


@pytest.mark.parametrize(
    "other",
    [
        key(ask("bank")),
        key(ask(), revision="2"),
        key(ask(), knowledge="v2"),
        key(ask(max_tokens=7)),
        key(ask(seed=1)),
        key(ask(top_p=0.5)),
        key(ask(stop=["."])),
        key(ask(messages=[{"role": "user", "content": "hello"}])),
        key(ask(unheard_of="field")),
        key(ask(route="completions")),
    ],
)
def test_another_question_has_another_key(other: str | None) -> None:
    assert other is not None
    assert other != key(ask())


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1},
        {"temperature": None},
        {"temperature": False},
        {"n": 2},
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
    ],
)
def test_what_is_drawn_or_is_no_text_is_not_cached(fields: dict[str, Any]) -> None:
    assert key(ask(**fields)) is None
    without = {"messages": QUESTION["messages"]}
    of = parse(
        "chat",
        orjson.dumps(without),
        tenant="a",
        model="m",
        request_id="r",
        trace=TraceParent.new(),
    )
    assert key(of) is None


@given(st.text(max_size=200), st.sampled_from(["chat", "completions"]))
def test_a_replayed_stream_says_what_was_stored(text: str, route: Any) -> None:
    stored = answers.entry(text, "stop", USAGE, [{"source": "a.md"}])
    pieces = list(answers.as_events(stored, route, "m", "id-1", usage=True))
    watch = streams.Watch(keep_usage=True, remember=True)
    for piece in pieces:
        watch.see(piece)
    assert watch.done
    assert watch.usage == USAGE
    assert watch.said() == streams.Said(text, "stop")
    whole = orjson.loads(answers.as_whole(stored, route, "m", "id-1"))
    choice = whole["choices"][0]
    assert (choice["text"] if route == "completions" else choice["message"]["content"]) == text
    assert whole["citations"] == [{"source": "a.md"}]


def test_a_replayed_stream_comes_in_pieces() -> None:
    stored = answers.entry("one two three", "stop", USAGE, [])
    pieces = list(answers.as_events(stored, "chat", "m", "id-1", usage=False))
    assert [streams.delta(e) for e in streams.events(pieces)] == ["", "one", " two", " three"]
