"""A request on its way to a replica and back: retried only as long as the client has seen nothing.

An answer is handed on event by event: an event is cut by the network anywhere, and what is looked for
in it (the usage at its end) must be seen whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
from prometheus_client import Counter

from serving.gateway.asks import PATHS
from serving.gateway.errors import ApiError, broken, timed_out, unavailable
from serving.gateway.fleet import Fleet, Replica
from serving.gateway.settings import Timeouts
from serving.gateway.streams import DONE

_EVENT_END = b"\n\n"
_TRY_ANOTHER = frozenset({500, 502, 503, 504})
_MOST_FAILURES = 3
"""Replicas that one request may fail at: it may be its own fault."""


@dataclass
class Upstream:
    """An answer of a replica that has begun."""

    replica: Replica
    status: int
    content_type: str
    first: bytes
    """Whole events where it is a stream; else the whole answer."""
    _response: aiohttp.ClientResponse
    _timeouts: Timeouts
    _until_s: float
    """When it has taken too long, however steadily it comes."""
    _left: bytes = field(default=b"", repr=False)

    @property
    def over(self) -> bool:
        """Whether it is known already that no more comes."""
        return self._response.content.at_eof() and not self._left

    async def more(self) -> bytes:
        """The next whole events; nothing where the answer is over.

        Raises:  ApiError: the replica died, or was silent for too long.
        """
        try:
            while piece := await self._response.content.readany():
                if time.monotonic() > self._until_s:
                    raise timed_out(f"The answer took over {self._timeouts.total_s:g} s.")
                piece, self._left = self._left + piece, b""
                if piece.endswith(_EVENT_END):
                    return piece
                cut = piece.rfind(_EVENT_END) + len(_EVENT_END)
                if cut >= len(_EVENT_END):
                    self._left = piece[cut:]
                    return piece[:cut]
                self._left = piece
        except TimeoutError:
            raise timed_out(f"The model was silent for {self._timeouts.idle_s:g} s.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise broken(f"The model's server broke off ({type(error).__name__}).") from error
        if self._left:
            raise broken("The model's server broke off.")
        return b""

    def close(self) -> None:
        """Give the connection back; where the answer is not over, break it off."""
        self._response.close()


class Forwarder:
    """Sends to the fleet."""

    def __init__(
        self, fleet: Fleet, session: aiohttp.ClientSession, timeouts: Timeouts, retries: Counter
    ) -> None:
        self._fleet = fleet
        self._session = session
        self._timeouts = timeouts
        # How long a read may take depends on what has been read; see `_begin` and `_first`.
        self._limit = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s)
        self._retries = retries

    async def send(
        self,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        track: str,
        prefix: int,
        *,
        stream: bool,
    ) -> Upstream:
        """Send to one replica after another until one begins to answer.

        Not after a time-out: the client has waited for long enough.

        Args:    prefix: requests that begin alike have the same.
                 stream: whether a stream is asked for; any other answer begins when it is whole.
        Returns: an answer that has begun; its replica counts it until `release`.
        Raises:  ApiError: none could; the last one's reason.
        """
        tried: list[Replica] = []
        reason: ApiError | None = None
        failures = 0
        while True:
            try:
                replica = self._fleet.choose(track, prefix, tried)
            except ApiError as nobody:
                raise reason or nobody from None
            if tried:
                self._retries.inc()
            tried.append(replica)
            replica.outstanding += 1
            begun = None
            try:
                begun = await self._begin(replica, path, body, headers, stream)
            except ApiError as error:
                reason = error
                failures += error.status != 503
                if failures == _MOST_FAILURES or error.status == 504:
                    raise
            finally:
                if begun is None:
                    replica.outstanding -= 1
            if begun is not None:
                return begun

    def release(self, upstream: Upstream, *, failed: bool) -> None:
        """The answer is over, or given up.

        Args:    failed: by the replica's fault.
        """
        upstream.replica.outstanding -= 1
        upstream.close()
        if failed:
            self._fleet.failed(upstream.replica, unreachable=False)
        else:
            upstream.replica.succeeded()

    async def _begin(
        self, replica: Replica, path: str, body: bytes, headers: Mapping[str, str], stream: bool
    ) -> Upstream:
        """The first events of a replica's answer, or all of an answer that is no stream."""
        response = None
        begun = None
        limit_s = self._timeouts.first_byte_s if stream else self._timeouts.total_s
        try:
            async with asyncio.timeout(limit_s):
                response = await self._session.post(
                    replica.url + path, data=body, headers=headers, timeout=self._limit
                )
                begun = await self._first(replica, path, response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._fleet.failed(replica, unreachable=True)
            raise broken("The model's server cannot be reached.") from error
        except TimeoutError:
            self._fleet.failed(replica, unreachable=False)
            begin = "begin to answer" if stream else "answer"
            raise timed_out(f"The model did not {begin} within {limit_s:g} s.") from None
        except (aiohttp.ClientError, OSError) as error:
            self._fleet.failed(replica, unreachable=False)
            raise broken(f"The model's server broke off ({type(error).__name__}).") from error
        finally:
            if begun is None and response is not None:
                response.close()
        if begun.status in _TRY_ANOTHER:
            begun.close()
            # A full queue is no failure of a replica.
            if begun.status != 503:
                self._fleet.failed(replica, unreachable=False)
                raise broken(f"The model's server answered {begun.status}.")
            raise unavailable("All replicas are full; try again.", "all_replicas_full")
        return begun

    async def _first(
        self, replica: Replica, path: str, response: aiohttp.ClientResponse
    ) -> Upstream:
        kind = response.headers.get("Content-Type", "application/json")
        until_s = time.monotonic() + self._timeouts.total_s
        if not kind.startswith("text/event-stream") or response.status != 200:
            whole = await response.read()
            return Upstream(
                replica, response.status, kind, whole, response, self._timeouts, until_s
            )
        # A chat begins with the role alone: what is worth seeing is the event after it.
        wanted = 2 if path == PATHS["chat"] else 1
        first = b""
        while len(first.split(_EVENT_END, wanted)) <= wanted and DONE not in first:
            piece = await response.content.readany()
            if not piece:
                raise aiohttp.ServerDisconnectedError
            first += piece
        cut = first.rfind(_EVENT_END) + len(_EVENT_END)
        if (connection := response.connection) is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._timeouts.idle_s
        return Upstream(
            replica, 200, kind, first[:cut], response, self._timeouts, until_s, first[cut:]
        )
