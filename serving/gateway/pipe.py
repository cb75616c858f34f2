"""One connection to Redis that all requests of a gateway share, each of them one round trip.

Commands of many requests are on their way at once and answers come back in order, so there is neither
a pool nor a lock. With redis-py's own pipeline the two round trips of a chat cost more than all else
that the gateway does; it still reads the address and serves whatever is not asked for every request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url

from serving.errors import InputError

Command = tuple[Any, ...]


class _Protocol(asyncio.Protocol):
    """Replies to futures, first come first served."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, list[Any]]] = deque()
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                future, count, replies = self._waiting[0]
                replies.append(reply)
                if len(replies) == count:
                    self._waiting.popleft()
                    if not future.done():
                        future.set_result(replies)
        except (hiredis.ProtocolError, IndexError):  # no Redis speaks so
            assert self.transport is not None
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(ConnectionError("Redis closed the connection"))

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((future, len(commands), []))
        if not self._unsent:
            loop.call_soon(self._send)
        self._unsent += [hiredis.pack_command(one) for one in commands]
        return future

    def _send(self) -> None:
        """What was asked in one turn of the event loop leaves in one system call."""
        if self.transport is not None:
            self.transport.write(b"".join(self._unsent))
        self._unsent.clear()


class Pipe:
    """Asks Redis; connects when first asked, and again after the connection was lost.

    Args:    url: redis://, rediss:// or unix://, with user, password and database.
    Raises:  InputError: no address of a Redis.
    """

    def __init__(self, url: str) -> None:
        try:
            self._where: dict[str, Any] = dict(parse_url(url))
        except ValueError as error:
            raise InputError(
                f"redis_url(={url!r}) is no address of a Redis ({error})",
                remedy="Write it as redis://host:6379/0.",
            ) from error
        self._secure = url.startswith("rediss://")
        self._protocol: _Protocol | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, *commands: Command) -> list[Any]:
        """The replies, in order.

        Raises:  OSError: no connection. hiredis.ReplyError: Redis refuses a command.
        """
        protocol = self._protocol
        if protocol is None or protocol.transport is None:
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
            if "path" in where:
                _, protocol = await loop.create_unix_connection(_Protocol, where["path"])
            else:
                _, protocol = await loop.create_connection(
                    _Protocol,
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
