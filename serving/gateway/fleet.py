"""The replicas of each track: which are there, which are well, and who takes the next request."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable
from typing import Literal
from urllib.parse import urlsplit

import aiohttp

from serving.gateway.balance import Balancer
from serving.gateway.errors import unavailable
from serving.gateway.logger import logger
from serving.gateway.settings import Settings

State = Literal["cold", "up", "down"]
_LONGEST_BREAK_S = 60.0
_DNS = "dns+"


class Replica:
    """One vLLM server, as this gateway sees it."""

    def __init__(self, url: str, track: str, number: int) -> None:
        self.url = url
        self.track = track
        self.number = number
        self.outstanding = 0
        self.state: State = "cold"
        self.failures = 0
        """In a row, of requests."""
        self.breaks = 0
        """In a row, without a success between."""
        self.shut_until_s = 0.0

    def __repr__(self) -> str:
        return f"Replica({self.url!r}, {self.track!r}, {self.state}, {self.outstanding})"

    def takes(self, now_s: float) -> bool:
        """Whether it may be sent a request: it is well, and no breaker is open.

        After a break one request at a time tries it, until one is answered.
        """
        if self.state != "up" or now_s < self.shut_until_s:
            return False
        return self.breaks == 0 or self.outstanding == 0

    def succeeded(self) -> None:
        self.failures = self.breaks = 0

    def failed(self, breaker_failures: int, breaker_s: float, now_s: float) -> None:
        """A request failed; after so many in a row the replica is left alone."""
        self.failures += 1
        if self.failures >= breaker_failures or self.breaks:
            self.shut_until_s = now_s + min(breaker_s * 2**self.breaks, _LONGEST_BREAK_S)
            self.breaks += 1
            self.failures = 0


class Fleet:
    """All replicas. Each is looked at every few seconds, and warmed up before its first request."""

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        on_change: Callable[[Replica], None] = lambda replica: None,
    ) -> None:
        self._settings = settings
        self._session = session
        self._on_change = on_change
        self._numbers = iter(range(1, 2**31))
        self._balancers = {track: Balancer(settings.spec) for track in settings.tracks}
        self._named = {track: list(addresses) for track, addresses in settings.tracks.items()}
        self._watched: dict[tuple[str, str], tuple[Replica, asyncio.Task[None]]] = {}
        self._resolver: asyncio.Task[None] | None = None
        self.replicas: dict[str, list[Replica]] = {track: [] for track in settings.tracks}

    async def start(self) -> None:
        """Look names up and begin to watch; does not wait for replicas."""
        for track in self._named:
            await self._refresh(track)
        if any(name.startswith(_DNS) for names in self._named.values() for name in names):
            self._resolver = asyncio.create_task(self._resolve())

    async def stop(self) -> None:
        tasks = [task for _, task in self._watched.values()]
        tasks += [self._resolver] if self._resolver else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ready(self, track: str) -> int:
        """Replicas of a track that would be sent a request now."""
        now_s = time.monotonic()
        return sum(replica.takes(now_s) for replica in self.replicas.get(track, ()))

    def choose(self, track: str, prefix: int, tried: Iterable[Replica]) -> Replica:
        """The replica that takes the next request.

        Raises:  ApiError: 503, where none is well or none has room.
        """
        now_s = time.monotonic()
        tried = tuple(tried)
        well = [r for r in self.replicas.get(track, ()) if r.takes(now_s)]
        left = [r for r in well if r not in tried]
        position = self._balancers[track].choose(left, prefix) if left else None
        if position is not None:
            return left[position]
        if well:
            raise unavailable("All replicas are full; try again.", "all_replicas_full")
        raise unavailable(f"No replica of {track!r} is ready.", "no_replica", 5)

    def failed(self, replica: Replica, *, unreachable: bool) -> None:
        """A request at a replica failed; one that cannot be reached is down until seen well."""
        health = self._settings.health
        replica.failed(health.breaker_failures, health.breaker_s, time.monotonic())
        if unreachable:
            self._set(replica, "down", "a request could not reach it")

    # -- watching --------------------------------------------------------------------------------

    def _set(self, replica: Replica, state: State, reason: str | None = None) -> None:
        if replica.state == state:
            return
        why = {} if reason is None else {"reason": reason}
        logger().info("replica", replica=replica.url, track=replica.track, state=state, **why)
        replica.state = state
        self._on_change(replica)

    async def _resolve(self) -> None:
        while True:
            await asyncio.sleep(self._settings.health.resolve_s)
            for track in self._named:
                await self._refresh(track)

    async def _refresh(self, track: str) -> None:
        """Bring the replicas of a track in line with what its names say."""
        wanted: set[str] = set()
        for name in self._named[track]:
            found = await self._addresses(name)
            if found is None:  # a name server that does not answer takes nobody away
                return
            wanted |= found
        for url in sorted(wanted - {r.url for r in self.replicas[track]}):
            replica = Replica(url, track, next(self._numbers))
            self.replicas[track].append(replica)
            task = asyncio.create_task(self._watch(replica))
            self._watched[track, url] = (replica, task)
        for gone in [r for r in self.replicas[track] if r.url not in wanted]:
            self.replicas[track].remove(gone)
            self._watched.pop((track, gone.url))[1].cancel()

    @staticmethod
    async def _addresses(name: str) -> set[str] | None:
        if not name.startswith(_DNS):
            return {name}
        parts = urlsplit(name.removeprefix(_DNS))
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                parts.hostname, parts.port or 80, type=socket.SOCK_STREAM
            )
        except socket.gaierror as error:
            # No address is an answer (a fleet scaled to zero), a failing name server is none.
            return set() if error.errno == socket.EAI_NONAME else None
        hosts = {str(address[0]) for *_, address in found}
        port = parts.port or 80
        return {f"{parts.scheme}://{f'[{h}]' if ':' in h else h}:{port}" for h in hosts}

    async def _watch(self, replica: Replica) -> None:
        """Down where it does not answer; up again once it has answered a question."""
        while True:
            fault = await self._fault(replica)
            if fault is not None and replica.state == "up":
                # A server that is busy may be late once.
                fault = await self._fault(replica)
            if fault is not None:
                self._set(replica, "down", fault)
            elif replica.state != "up" and await self._warm_up(replica):
                replica.succeeded()
                replica.shut_until_s = 0.0
                self._set(replica, "up")
            await asyncio.sleep(self._settings.health.every_s)

    async def _fault(self, replica: Replica) -> str | None:
        """What is wrong with a replica; None where it is well."""
        limit = aiohttp.ClientTimeout(total=max(2.0, self._settings.timeouts.connect_s))
        try:
            async with self._session.get(f"{replica.url}/health", timeout=limit) as answer:
                return None if answer.status == 200 else f"/health answered {answer.status}"
        except TimeoutError:
            return f"/health did not answer within {limit.total:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return str(error) or type(error).__name__

    async def _warm_up(self, replica: Replica) -> bool:
        """Whether the model has answered: a server that listens may still be cold."""
        health = self._settings.health
        question = {
            "model": self._settings.model,
            "prompt": "Hello",
            "max_tokens": health.warm_up_tokens,
            "temperature": 0,
        }
        began_s = time.monotonic()
        try:
            async with self._session.post(
                f"{replica.url}/v1/completions",
                json=question,
                timeout=aiohttp.ClientTimeout(total=health.warm_up_s),
            ) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            logger().warning("warm-up failed", replica=replica.url, reason=repr(error))
            return False
        if answer.status != 200:
            logger().warning("warm-up failed", replica=replica.url, reason=text[:200])
            return False
        took_s = time.monotonic() - began_s
        logger().info("replica is warm", replica=replica.url, first_answer_s=round(took_s, 3))
        return True
