"""The context cache: what was said before is put before what is said now.

A turn is the client's messages and the answer. What is kept of a conversation is a suffix of its turns:
the newest that fit the token budget together. System messages are not remembered; the client's come
first, then the turns, then the rest.

The gateway has no tokenizer. It counts an answer's tokens as vLLM reports them and anything else as a
token for four bytes of UTF-8, which is near the truth for English text and above it for code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4

Message = dict[str, Any]


def estimated_tokens(messages: Sequence[Message]) -> int:
    """About how many tokens messages take."""
    return sum(
        len(orjson.dumps(message.get("content"))) // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE
        for message in messages
    )


def turn(asked: Sequence[Message], answer: str, answer_tokens: int | None) -> bytes:
    """A turn as it is stored."""
    said = [message for message in asked if message["role"] not in ("system", "developer")]
    reply = {"role": "assistant", "content": answer}
    tokens = answer_tokens or estimated_tokens([reply])
    return orjson.dumps({"messages": [*said, reply], "tokens": estimated_tokens(said) + tokens})


def with_history(
    asked: Sequence[Message], turns: Sequence[bytes], budget_tokens: int
) -> tuple[list[Message], int]:
    """The messages with the newest turns that fit the budget before them.

    Args:    turns: as stored, oldest first.
    Returns: the messages, and how many turns were dropped.
    """
    kept: list[list[Message]] = []
    left = budget_tokens
    for stored in reversed(turns):
        one = orjson.loads(stored)
        left -= one["tokens"]
        if left < 0:
            break
        kept.append(one["messages"])
    first = 0
    while first < len(asked) and asked[first]["role"] in ("system", "developer"):
        first += 1
    history = [message for messages in reversed(kept) for message in messages]
    return [*asked[:first], *history, *asked[first:]], len(turns) - len(kept)
