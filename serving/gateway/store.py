"""What is remembered between requests: conversations, answers, rates, users.

One round trip before an answer and one after it. In Redis gateways share it; in this process it is
forgotten at the end. Keys: `conv:`, `answer:`, `rate:`, `seen:`, each with the tenant.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cachetools import LRUCache, TTLCache

from serving.gateway.pipe import Command, Pipe

SEEN_S = 7 * 86_400
"""A user who comes back within a week is a returning one."""
_MINUTE_S = 60


class Wanted(NamedTuple):
    """What one request asks for; None asks for nothing."""

    conversation: str | None = None
    answer: str | None = None
    rate: str | None = None
    user: str | None = None


class Found(NamedTuple):
    """What is known."""

    turns: Sequence[bytes] = ()
    """Of the conversation, oldest first."""
    answer: bytes | None = None
    used: int = 0
    """Requests of the tenant in this minute, this one with them."""
    seen_s: float | None = None
    """When the user last asked; None is never. Seconds since the epoch."""


class Kept(NamedTuple):
    """What one answer leaves behind."""

    conversation: str | None = None
    turn: bytes = b""
    most_turns: int = 64
    conversation_ttl_s: int = 86_400
    answer_key: str | None = None
    answer: bytes = b""
    answer_ttl_s: float = 3600.0


class Store(Protocol):
    """Where it is remembered."""

    async def look_up(self, wanted: Wanted) -> Found: ...

    async def keep(self, kept: Kept) -> None: ...

    async def forget(self, conversation: str) -> None: ...

    async def close(self) -> None: ...


@dataclass
class MemoryStore:
    """In this process, bounded: the least recently used goes."""

    answers: int = 10_000
    answer_ttl_s: float = 3600.0
    conversations: int = 100_000
    conversation_ttl_s: float = 86_400.0
    _conversations: MutableMapping[str, list[bytes]] = field(init=False)
    _answers: MutableMapping[str, bytes] = field(init=False)
    _rates: MutableMapping[str, int] = field(init=False)
    _seen: MutableMapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self._conversations = TTLCache(self.conversations, self.conversation_ttl_s)
        self._answers = TTLCache(self.answers, self.answer_ttl_s)
        self._rates = TTLCache(100_000, 2 * _MINUTE_S)
        self._seen = LRUCache(100_000)

    async def look_up(self, wanted: Wanted) -> Found:
        now_s = time.time()
        used, seen_s = 0, None
        if wanted.rate:
            key = _rate_key(wanted.rate, now_s)
            used = self._rates[key] = self._rates.get(key, 0) + 1
        if wanted.user:
            seen_s = self._seen.get(wanted.user)
            self._seen[wanted.user] = now_s
        turns = self._conversations.get(wanted.conversation, ()) if wanted.conversation else ()
        answer = self._answers.get(wanted.answer) if wanted.answer else None
        return Found(tuple(turns), answer, used, seen_s)

    async def keep(self, kept: Kept) -> None:
        if kept.conversation:
            turns = [*self._conversations.get(kept.conversation, ()), kept.turn]
            self._conversations[kept.conversation] = turns[-kept.most_turns :]
        if kept.answer_key:
            self._answers[kept.answer_key] = kept.answer

    async def forget(self, conversation: str) -> None:
        self._conversations.pop(conversation, None)

    async def close(self) -> None:
        pass


class RedisStore:
    """In Redis. Raises OSError or hiredis.ReplyError where it does not answer as it should, and
    TimeoutError where it does not in time."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._pipe = Pipe(url, timeout_s)

    async def look_up(self, wanted: Wanted) -> Found:
        now_s = time.time()
        commands: list[Command] = []
        if wanted.conversation:
            commands.append(("LRANGE", f"conv:{wanted.conversation}", 0, -1))
        if wanted.answer:
            commands.append(("GET", f"answer:{wanted.answer}"))
        if wanted.user:
            seen = f"{now_s:.3f}"
            commands.append(("SET", f"seen:{wanted.user}", seen, "EX", SEEN_S, "GET"))
        if wanted.rate:
            key = f"rate:{_rate_key(wanted.rate, now_s)}"
            commands += [("INCR", key), ("EXPIRE", key, 2 * _MINUTE_S)]
        replies = iter(await self._pipe.ask(*commands))
        turns = next(replies) if wanted.conversation else ()
        answer = next(replies) if wanted.answer else None
        last = next(replies) if wanted.user else None
        used = int(next(replies)) if wanted.rate else 0
        return Found(turns, answer, used, None if last is None else float(last))

    async def keep(self, kept: Kept) -> None:
        commands: list[Command] = []
        if kept.conversation:
            key = f"conv:{kept.conversation}"
            commands += [
                ("RPUSH", key, kept.turn),
                ("LTRIM", key, -kept.most_turns, -1),
                ("EXPIRE", key, kept.conversation_ttl_s),
            ]
        if kept.answer_key:
            ttl_ms = max(1, int(1000 * kept.answer_ttl_s))
            commands.append(("SET", f"answer:{kept.answer_key}", kept.answer, "PX", ttl_ms))
        await self._pipe.ask(*commands)

    async def forget(self, conversation: str) -> None:
        await self._pipe.ask(("DEL", f"conv:{conversation}"))

    async def close(self) -> None:
        await self._pipe.close()


def _rate_key(tenant: str, now_s: float) -> str:
    return f"{tenant}:{int(now_s // _MINUTE_S)}"
