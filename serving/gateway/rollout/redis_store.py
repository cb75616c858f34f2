"""The store in Redis: several gateways on several machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, WatchError

from serving.errors import InputError
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.state import RolloutState
from serving.gateway.rollout.store import (
    COUNTS,
    FORGOTTEN_S,
    HEALTH_S,
    KEPT_S,
    Report,
    StoreError,
    least_healthy,
)
from serving.values import one_line


class RedisStore:
    """The state is one string of JSON; counts are hashes with a field for each gateway.

        rollout:state                       the state
        rollout:health                      gateway -> [time, {track: healthy replicas}]
        rollout:counts:PERIOD               gateway -> {track: counts}
        rollout:users:ROLLOUT:TRACK         HyperLogLog of users (0.8 % off at worst, as a rule)

    Args:    prefix: before every key, for a Redis that others use too.
    """

    def __init__(self, client: Redis, name: str, prefix: str = "") -> None:
        self._redis: Any = client
        self._prefix = f"{prefix}rollout:"
        self._name = name

    @classmethod
    def at(cls, url: str, prefix: str = "", timeout_s: float = 1.0) -> RedisStore:
        """Connect on first use. A gateway must not hang on Redis, so it waits for a second at most."""
        try:
            client = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 1),
            )
            parts = urlsplit(url)
            place = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
        except ValueError as error:
            raise InputError(
                f"the URL of Redis cannot be read ({error})",
                remedy="Write for example redis://127.0.0.1:6379/0.",
            ) from error
        return cls(client, f"Redis at {place}", prefix)

    @property
    def name(self) -> str:
        return self._name

    async def load(self) -> RolloutState | None:
        with self._reached():
            return self._state(await self._redis.get(self._key("state")))

    async def save(self, state: RolloutState, expected: int | None) -> bool:
        key = self._key("state")
        with self._reached():
            async with self._redis.pipeline(transaction=True) as pipe:
                try:
                    await pipe.watch(key)
                    there = self._state(await pipe.get(key))
                    if (there.version if there is not None else None) != expected:
                        return False
                    pipe.multi()
                    pipe.set(key, state.model_dump_json())
                    await pipe.execute()
                except WatchError:
                    return False
        return True

    async def report(self, report: Report) -> None:
        with self._reached():
            async with self._redis.pipeline(transaction=False) as pipe:
                said = json.dumps([report.at_s, dict(report.healthy)])
                pipe.hset(self._key("health"), report.gateway, said)
                for period, totals in report.counts.items():
                    key = self._key(f"counts:{period}")
                    pipe.hset(key, report.gateway, totals)
                    pipe.expire(key, KEPT_S)
                for rollout, by_track in report.users.items():
                    for track, users in by_track.items():
                        key = self._key(f"users:{rollout}:{track}")
                        pipe.pfadd(key, *users)
                        pipe.expire(key, KEPT_S)
                await pipe.execute()

    async def counts(self, period: int) -> dict[str, Counts]:
        with self._reached():
            parts = await self._redis.hvals(self._key(f"counts:{period}"))
            by_gateway = [COUNTS.validate_json(part) for part in parts]
        tracks = sorted({track for found in by_gateway for track in found})
        return {t: Counts.sum_of(found[t] for found in by_gateway if t in found) for t in tracks}

    async def users(self, rollout: int, track: str) -> int:
        with self._reached():
            return int(await self._redis.pfcount(self._key(f"users:{rollout}:{track}")))

    async def healthy(self, now_s: float) -> dict[str, int] | None:
        with self._reached():
            said = await self._redis.hgetall(self._key("health"))
            spoke = {gateway: json.loads(text) for gateway, text in said.items()}
            gone = [g for g, (at_s, _) in spoke.items() if now_s - at_s > FORGOTTEN_S]
            if gone:
                await self._redis.hdel(self._key("health"), *gone)
        return least_healthy([h for at_s, h in spoke.values() if now_s - at_s <= HEALTH_S])

    async def close(self) -> None:
        await self._redis.aclose()

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _state(self, text: bytes | None) -> RolloutState | None:
        return None if text is None else RolloutState.model_validate_json(text)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreError(
                f"{self._name} does not answer ({' '.join(str(error).split())})",
                remedy="Check that it runs, and its URL.",
            ) from error
        except ValidationError as error:
            raise StoreError(
                f"{self._name} holds something else under {self._prefix}: {one_line(error)}",
                remedy="Use gateways and commands of one version, or another database.",
            ) from error
