"""One connection to Redis that all requests of a gateway share, each of them one round trip.

Commands of many requests are on their way at once and answers come back in order, so there is neither
a pool nor a lock, and one timer sees to all of them: who asked first is late first. With redis-py's own
pipeline the two round trips of a chat cost more than all else that the gateway does; it still reads the
address and serves whatever is not asked for every request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url

from serving.errors import InputError

Command = tuple[Any, ...]


@dataclass(slots=True)
class _Asked:
    """Commands that were sent together."""

    future: asyncio.Future[list[Any]]
    count: int
    until_s: float
    """Of the event loop's clock."""
    replies: list[Any] = field(default_factory=list)


class _Protocol(asyncio.Protocol):
    """Replies to futures, first come first served."""

    def __init__(self, timeout_s: float) -> None:
        self.transport: asyncio.WriteTransport | None = None
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[_Asked] = deque()
        self._watched = False
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                asked = self._waiting[0]
                asked.replies.append(reply)
                if len(asked.replies) == asked.count:
                    self._waiting.popleft()
                    if not asked.future.done():
                        asked.future.set_result(asked.replies)
        except (hiredis.ProtocolError, IndexError):  # no Redis speaks so
            assert self.transport is not None
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.done():
                future.set_exception(ConnectionError("Redis closed the connection"))

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        until_s = self._loop.time() + self._timeout_s
        self._waiting.append(_Asked(future, len(commands), until_s))
        if not self._watched:
            self._watched = True
            self._loop.call_at(until_s, self._watch)
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent += [hiredis.pack_command(one) for one in commands]
        return future

    def _watch(self) -> None:
        """Who is late is told; the reply may come yet, so that its place in the queue is kept."""
        now_s = self._loop.time()
        for asked in self._waiting:
            if asked.until_s > now_s:
                self._loop.call_at(asked.until_s, self._watch)
                return
            if not asked.future.done():
                asked.future.set_exception(TimeoutError(f"Redis took {self._timeout_s:g} s"))
        self._watched = False

    def _send(self) -> None:
        """What was asked in one turn of the event loop leaves in one system call."""
        if self.transport is not None:
            self.transport.write(b"".join(self._unsent))
        self._unsent.clear()


class Pipe:
    """Asks Redis; connects when first asked, and again after the connection was lost.

    Args:    url: redis://, rediss:// or unix://, with user, password and database.
             timeout_s: for a connection, and for an answer.
    Raises:  InputError: no address of a Redis.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            self._where: dict[str, Any] = dict(parse_url(url))
        except ValueError as error:
            raise InputError(
                f"redis_url(={url!r}) is no address of a Redis ({error})",
                remedy="Write it as redis://host:6379/0.",
            ) from error
        self._timeout_s = timeout_s
        self._secure = url.startswith("rediss://")
        self._protocol: _Protocol | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, *commands: Command) -> list[Any]:
        """The replies, in order.

        Raises:  OSError: no connection, or (a TimeoutError) no answer in time. hiredis.ReplyError: Redis
                 refuses a command.
        """
        protocol = self._protocol
        if protocol is None or protocol.transport is None:
            async with asyncio.timeout(self._timeout_s):
                protocol = await self._connected()
        replies = await protocol.ask(commands)
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
        return replies

    async def close(self) -> None:
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.close()

    async def _connected(self) -> _Protocol:
        async with self._connecting:
            if self._protocol is not None and self._protocol.transport is not None:
                return self._protocol
            loop = asyncio.get_running_loop()
            where = self._where
            make = partial(_Protocol, self._timeout_s)
            if "path" in where:
                _, protocol = await loop.create_unix_connection(make, where["path"])
            else:
                _, protocol = await loop.create_connection(
                    make,
                    where.get("host", "localhost"),
                    where.get("port", 6379),
                    ssl=ssl.create_default_context() if self._secure else None,
                )
            await self._introduce(protocol)
            self._protocol = protocol
            return protocol

    async def _introduce(self, protocol: _Protocol) -> None:
        greeting: list[Command] = []
        if self._where.get("password"):
            user = self._where.get("username")
            password = self._where["password"]
            greeting.append(("AUTH", user, password) if user else ("AUTH", password))
        if self._where.get("db"):
            greeting.append(("SELECT", int(self._where["db"])))
        if not greeting:
            return
        for reply in await protocol.ask(greeting):
            if isinstance(reply, hiredis.ReplyError):
                assert protocol.transport is not None
                protocol.transport.close()
                raise reply
