"""Reading what vLLM streams: the usage at its end, the text when it is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

DONE = b"data: [DONE]"
_NO_CHOICE = b'"choices":[]'
"""Only the event with the usage has none; within a text the quotes would be escaped."""
_ERROR = b'data: {"error":'
_EVENT_END = b"\n\n"
_EVENT_BEGIN = b"\n\ndata: "
_LAST_EVENT = _EVENT_END + DONE


@dataclass(slots=True)
class Said:
    """What a stream said, once it is over."""

    text: str = ""
    finish_reason: str | None = None


@dataclass(slots=True)
class Watch:
    """Looks at whole events as they pass; costs two searches for each piece."""

    keep_usage: bool
    """The client asked for the event with the usage."""
    remember: bool
    """Somebody wants the text afterwards."""
    usage: dict[str, Any] = field(default_factory=dict)
    done: bool = False
    failed: bool = False
    pieces: list[bytes] = field(default_factory=list)

    def see(self, piece: bytes) -> bytes:
        """What is handed on of a piece."""
        # What is looked for stands at the end, and `rfind` takes half the time also where it is not.
        if (at := piece.rfind(_NO_CHOICE)) >= 0:
            piece = self._take_usage(piece, at)
        if piece.rfind(_LAST_EVENT) >= 0 or piece.startswith(DONE):
            self.done = True
        if piece.rfind(_ERROR) >= 0:
            self.failed = True
        if self.remember:
            self.pieces.append(piece)
        return piece

    def _take_usage(self, piece: bytes, at: int) -> bytes:
        """The piece without the event that has the usage, unless its client asked for that."""
        begin = piece.rfind(_EVENT_BEGIN, 0, at) + len(_EVENT_END)
        if begin < len(_EVENT_END):
            begin = 0
        end = piece.index(_EVENT_END, at) + len(_EVENT_END)
        self.usage = orjson.loads(piece[begin + len(b"data: ") : end]).get("usage") or {}
        return piece if self.keep_usage else piece[:begin] + piece[end:]

    def said(self) -> Said:
        """The text of the first choice."""
        return _text(events(self.pieces))


def events(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """The JSON of all events."""
    whole = b"".join(pieces).rstrip().removesuffix(DONE).rstrip()
    if not whole:
        return []
    # Between two events only, since within a text line ends are escaped.
    found: list[dict[str, Any]] = orjson.loads(b"[%b]" % whole[6:].replace(b"\n\ndata: ", b","))
    return found


def delta(event: dict[str, Any]) -> str:
    """The text that an event adds to the first choice."""
    for choice in event.get("choices", ()):
        if choice.get("index", 0) == 0:
            return _added(choice)
    return ""


def _added(choice: dict[str, Any]) -> str:
    told = choice.get("delta")
    return (told.get("content") if told else choice.get("text")) or ""


def _text(found: list[dict[str, Any]]) -> Said:
    said = Said()
    texts = []
    for event in found:
        for choice in event.get("choices", ()):
            if choice.get("index", 0) == 0:
                texts.append(_added(choice))
                said.finish_reason = choice.get("finish_reason") or said.finish_reason
    said.text = "".join(texts)
    return said


def with_citations(first: bytes, citations: list[dict[str, Any]]) -> bytes:
    """The first events with the passages added to the very first."""
    head, _, rest = first.partition(b"\n\n")
    if not head.startswith(b"data: {"):
        return first
    event = orjson.loads(head[6:]) | {"citations": citations}
    return b"data: " + orjson.dumps(event) + b"\n\n" + rest
