"""The header that carries a trace from service to service.

Source:  W3C Trace Context, Level 1: version-traceid-parentid-flags in lower-case hex, nothing all zero;
         a version that is not known is read by its first four fields, and ff never.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple, Self

HEADER = "traceparent"
_SAMPLED = 0x01
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


class TraceParent(NamedTuple):
    """One span of a trace."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""
    sampled: bool = True

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Read a header; None where there is none that is valid, so that a new trace begins."""
        found = _FORM.fullmatch(text.strip(" \t")) if text else None
        if found is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        if version == "ff" or (version == "00" and more is not None):
            return None
        if trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))

    @classmethod
    def new(cls, *, sampled: bool = True) -> Self:
        """The first span of a new trace."""
        return cls(_random(16), _random(8), sampled)

    @classmethod
    def serve(cls, header: str | None) -> Self:
        """The span of a request that is served here: of the caller's trace where it sent one."""
        caller = cls.parse(header)
        return cls.new() if caller is None else caller.child()

    def child(self) -> Self:
        """A span below this one, in the same trace."""
        return self._replace(span_id=_random(8))

    def __str__(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def _random(n_bytes: int) -> str:
    """Hex digits, not all zero; they have to differ, not to be secret."""
    while not any(drawn := random.randbytes(n_bytes)):
        pass
    return drawn.hex()
