from __future__ import annotations

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


def test_an_error_in_the_stream_is_seen() -> None:
    watch = streams.Watch(keep_usage=False, remember=False)
    watch.see(b'data: {"error":{"message":"out of memory"}}\n\n')
    assert watch.failed


def test_citations_go_into_the_first_event() -> None:
    first = streams.with_citations(token("a") + token("b"), [{"source": "x.md"}])
    found = streams.events([first])
    assert found[0]["citations"] == [{"source": "x.md"}]
    assert "citations" not in found[1]
