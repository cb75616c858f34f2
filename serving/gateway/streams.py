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
_TEXTS = (b'"delta":{"content":"', b'"text":"')
"""What stands before the text of an event, of a chat and of a completion."""


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
        whole = b"".join(self.pieces)
        try:
            return _said(whole, framed=True)
        except orjson.JSONDecodeError:  # an event looked like another that it is not like
            return _said(whole, framed=False)


def events(pieces: Iterable[bytes]) -> list[dict[str, Any]]:
    """The JSON of all events."""
    found: list[dict[str, Any]] = orjson.loads(b"[%b]" % b",".join(_split(b"".join(pieces))))
    return found


def _split(whole: bytes) -> list[bytes]:
    """The events, without what is between them: within a text line ends are escaped."""
    whole = whole.rstrip().removesuffix(DONE).rstrip()
    return whole[len(b"data: ") :].split(_EVENT_BEGIN) if whole else []


def delta(event: dict[str, Any]) -> str:
    """The text that an event adds to the first choice."""
    for choice in event.get("choices", ()):
        if choice.get("index", 0) == 0:
            return _added(choice)
    return ""


def _added(choice: dict[str, Any]) -> str:
    told = choice.get("delta")
    return (told.get("content") if told else choice.get("text")) or ""


def _said(whole: bytes, *, framed: bool) -> Said:
    """What the events say.

    All events but a few differ in their text alone. It is cut out by what stands before and after it,
    which takes less than half the time of reading their JSON.

    Raises:  orjson.JSONDecodeError: one was cut out that was no text; only where `framed`.
    """
    said = Said()
    texts = []  # as JSON has them
    before = after = b""
    for event in _split(whole):
        if before and event.startswith(before) and event.endswith(after):
            texts.append(event[len(before) : -len(after)])
            continue
        choices = orjson.loads(event).get("choices", ())
        for choice in choices:
            if choice.get("index", 0) == 0:
                texts.append(orjson.dumps(_added(choice))[1:-1])
                said.finish_reason = choice.get("finish_reason") or said.finish_reason
                if framed and not before and said.finish_reason is None and len(choices) == 1:
                    before, after = _frame(event, texts[-1])
    said.text = orjson.loads(b'"%b"' % b"".join(texts))
    return said


def _frame(event: bytes, text: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the text of an event; nothing where it is not written so."""
    for name in _TEXTS:
        before, found, rest = event.partition(name)
        if found and rest.startswith(text + b'"'):
            return before + name, rest[len(text) :]
    return b"", b""


def with_citations(first: bytes, citations: list[dict[str, Any]]) -> bytes:
    """The first events with the passages added to the very first."""
    head, _, rest = first.partition(b"\n\n")
    if not head.startswith(b"data: {"):
        return first
    event = orjson.loads(head[6:]) | {"citations": citations}
    return b"data: " + orjson.dumps(event) + b"\n\n" + rest
