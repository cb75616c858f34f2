from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import streams

HEAD = {"id": "1", "object": "chat.completion.chunk", "model": "m"}
USAGE = {"prompt_tokens": 4, "completion_tokens": 3}


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(HEAD | value) + b"\n\n"


def token(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"choices": [choice]})


USED = event({"choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"


@given(st.lists(st.text(), max_size=6), st.booleans())
def test_the_usage_is_taken_out_unless_it_was_asked_for(texts: list[str], asked: bool) -> None:
    watch = streams.Watch(keep_usage=asked, remember=True)
    tokens = [token(text) for text in texts]
    handed_on = b"".join(watch.see(piece) for piece in (*tokens, USED, DONE))
    assert handed_on == b"".join(tokens) + (USED if asked else b"") + DONE
    assert watch.usage == USAGE
    assert watch.said().text == "".join(texts)


def test_all_in_one_piece_is_the_same() -> None:
    watch = streams.Watch(keep_usage=False, remember=True)
    assert watch.see(token("a") + token("b", "stop") + USED + DONE) == (
        token("a") + token("b", "stop") + DONE
    )
    assert watch.said() == streams.Said("ab", "stop")
    assert watch.done


def test_a_text_that_looks_like_the_end_is_a_text() -> None:
    watch = streams.Watch(keep_usage=False, remember=True)
    says = token('"choices":[] data: [DONE]\n\ndata: {"error": 1}')
    assert watch.see(says) == says
    assert watch.usage == {}
    assert not watch.failed


def test_a_text_that_says_the_last_event_is_not_the_last_event() -> None:
    watch = streams.Watch(keep_usage=False, remember=True)
    watch.see(token("data: [DONE]"))
    assert not watch.done
    watch.see(DONE)
    assert watch.done


_WORDS = st.text(alphabet='a"\\,:{}[]\n\u00e9\U0001f600', max_size=4)
_DELTAS = st.one_of(
    st.fixed_dictionaries({"content": _WORDS}),
    st.fixed_dictionaries({"reasoning": _WORDS}),
    st.fixed_dictionaries({"content": _WORDS, "reasoning": _WORDS}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": _WORDS}),
)
_CHOICES = st.one_of(
    st.builds(lambda index, delta: {"index": index, "delta": delta}, st.integers(0, 1), _DELTAS),
    st.builds(lambda text: {"index": 0, "text": text}, _WORDS),
)


@given(st.lists(st.lists(_CHOICES, min_size=1, max_size=2), max_size=8), st.booleans())
def test_what_was_said_is_the_text_of_all_events(said: list[list[Any]], ascii_only: bool) -> None:
    watch = streams.Watch(keep_usage=False, remember=True)
    for at, choices in enumerate(said):
        over = "stop" if at == len(said) - 1 else None
        told = {
            "choices": [choice | {"logprobs": None, "finish_reason": over} for choice in choices]
        }
        written = json.dumps(HEAD | told, ensure_ascii=ascii_only, separators=(",", ":"))
        watch.see(b"data: " + written.encode() + b"\n\n")
    watch.see(DONE)
    texts = [
        choice.get("delta", choice).get("content" if "delta" in choice else "text", "")
        for choices in said
        for choice in choices
        if choice["index"] == 0
    ]
    assert watch.said().text == "".join(texts)


def test_an_error_in_the_stream_is_seen() -> None:
    watch = streams.Watch(keep_usage=False, remember=False)
    watch.see(b'data: {"error":{"message":"out of memory"}}\n\n')
    assert watch.failed


def test_citations_go_into_the_first_event() -> None:
    first = streams.with_citations(token("a") + token("b"), [{"source": "x.md"}])
    found = streams.events([first])
    assert found[0]["citations"] == [{"source": "x.md"}]
    assert "citations" not in found[1]
