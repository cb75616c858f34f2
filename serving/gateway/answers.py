"""The result cache: the same question, word for word, gets the same answer without the model.

Only where the answer is the same every time: sampling that draws (a temperature that is not 0; left out
it is 1) is never cached, nor what a text cannot be rebuilt into (tools, log-probabilities, several
answers). The key holds the tenant, the model and its revision, the version of the knowledge base and
every field of the request that the model sees.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from typing import Any, Literal

import orjson

from serving.gateway.asks import Ask, Route

_UNSEEN = frozenset({"stream", "stream_options", "user", "metadata", "store", "model"})
"""By the model."""
_NOT_A_TEXT = frozenset(
    {"tools", "functions", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "best_of"}
)
_PIECE = re.compile(r"\s*\S+|\s+$")
OBJECT: dict[Route, tuple[str, str]] = {
    "chat": ("chat.completion", "chat.completion.chunk"),
    "completions": ("text_completion", "text_completion"),
}


def key(ask: Ask, model: str, revision: str, knowledge: str) -> str | None:
    """By what the answer is known; None where it must not be cached.

    Args:    knowledge: version of the knowledge base that is asked; "" for none.
    """
    body = ask.body
    if body.get("temperature") != 0 or isinstance(body.get("temperature"), bool):
        return None
    if body.get("n") not in (None, 1) or any(body.get(name) for name in _NOT_A_TEXT):
        return None
    if ask.route == "completions" and not isinstance(body.get("prompt"), str):
        return None
    seen = {name: value for name, value in body.items() if name not in _UNSEEN}
    where = [ask.route, ask.tenant, model, revision, knowledge]
    text = orjson.dumps([where, seen], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=20).hexdigest()


def entry(
    text: str, finish_reason: str, usage: dict[str, Any], citations: list[dict[str, Any]]
) -> bytes:
    """An answer as it is stored."""
    return orjson.dumps(
        {"text": text, "finish_reason": finish_reason, "usage": usage, "citations": citations}
    )


def text_of(stored: bytes) -> tuple[str, int | None]:
    """(the answer's text, its tokens)."""
    found = orjson.loads(stored)
    return found["text"], found["usage"].get("completion_tokens")


def as_whole(stored: bytes, route: Route, model: str, identity: str) -> bytes:
    """A stored answer as one JSON object."""
    found = orjson.loads(stored)
    said = _said(route, found["text"], whole=True)
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": found["finish_reason"]}
    body = _head(route, model, identity, kind=0) | {"choices": [choice], "usage": found["usage"]}
    if found["citations"]:
        body["citations"] = found["citations"]
    return orjson.dumps(body)


def as_events(
    stored: bytes, route: Route, model: str, identity: str, *, usage: bool
) -> Iterator[bytes]:
    """A stored answer as the events of a stream: word by word, as the model would."""
    found = orjson.loads(stored)
    head = _head(route, model, identity, kind=1)
    if route == "chat":
        first = {"role": "assistant", "content": ""}
        opening = head | {"choices": [{"index": 0, "delta": first, "finish_reason": None}]}
        if found["citations"]:
            opening["citations"] = found["citations"]
        yield _event(opening)
    pieces = _PIECE.findall(found["text"]) or [""]
    for at, piece in enumerate(pieces):
        over = found["finish_reason"] if at == len(pieces) - 1 else None
        said = _said(route, piece, whole=False)
        yield _event(head | {"choices": [{"index": 0, **said, "finish_reason": over}]})
    if usage:
        yield _event(head | {"choices": [], "usage": found["usage"]})
    yield b"data: [DONE]\n\n"


def _head(route: Route, model: str, identity: str, *, kind: Literal[0, 1]) -> dict[str, Any]:
    return {
        "id": identity,
        "object": OBJECT[route][kind],
        "created": int(time.time()),
        "model": model,
    }


def _said(route: Route, text: str, *, whole: bool) -> dict[str, Any]:
    if route == "completions":
        return {"text": text}
    if whole:
        return {"message": {"role": "assistant", "content": text}}
    return {"delta": {"content": text}}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
