"""A gateway's part in rollouts: it splits, counts, reports each second, and looks when it is time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime
from uuid import uuid4

from serving.errors import InputError
from serving.gateway.logger import logger
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.looking import due, look
from serving.gateway.rollout.state import (
    UNDER_WAY,
    RolloutState,
    held,
    promote,
    roll_back,
    track_of,
)
from serving.gateway.rollout.store import COUNTS, Report, Store, StoreError

_MAX_USERS = 100_000
"""New users that are remembered for one report, while a store is out of reach."""


class Rollouts:
    """What a gateway asks for each request, and the loop behind it.

    `track_of` and `record` take microseconds and never wait. While the store is out of reach the last
    known state holds; nothing is decided then, and counts are kept until it is back.

    Args:    store: shared with the other gateways and with `serving rollout`.
             stable: the track that serves where the store has no state yet.
             healthy: () -> {track: replicas that are ready and warm}, for each track of the gateway,
             also those with none; asked once a second.
             on_change: (before, after), told of each state that splits otherwise; before is None for the
             state that the gateway begins with, and again for the first that it reads.
             clock: seconds since the epoch.
             poll_s: between two ticks.
    """

    def __init__(
        self,
        store: Store,
        *,
        stable: str,
        healthy: Callable[[], Mapping[str, int]],
        on_change: Callable[[RolloutState | None, RolloutState], None] = lambda before, after: None,
        clock: Callable[[], float] = time.time,
        poll_s: float = 1.0,
    ) -> None:
        self._store = store
        self._healthy = healthy
        self._on_change = on_change
        self._clock = clock
        self._poll_s = poll_s
        self._gateway = uuid4().hex
        self._known = False
        self._reachable = True
        self._task: asyncio.Task[None] | None = None
        self._ticking = asyncio.Lock()
        self._seen_healthy: set[str] = set()
        self._users: dict[int, dict[str, set[str]]] = {}
        self._users_now: dict[str, set[str]] = {}
        self._counts: dict[int, dict[str, Counts]] = {}
        if stable not in healthy():
            raise InputError(
                f"stable(={stable!r}) is none of the tracks {sorted(healthy())}",
                remedy="Name one of them.",
            )
        self._default = stable
        self._state = self._split = RolloutState(stable=stable, since=self._now())
        self._adopt(self._state)
        on_change(None, self._state)

    @property
    def stable(self) -> str:
        """The track that serves whoever the candidate does not."""
        return self._split.stable

    @property
    def state(self) -> RolloutState:
        """As it was last read."""
        return self._state

    @property
    def store_reachable(self) -> bool:
        """Whether the last tick reached the store."""
        return self._reachable

    def track_of(self, owner: str) -> str:
        """The track for a conversation; stable while the candidate has no healthy replica."""
        return track_of(owner, self._split)

    def record(
        self,
        track: str,
        owner: str,
        failed: bool,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        e2e_s: float | None = None,
        *,
        timed_out: bool = False,
    ) -> None:
        """Count one request that a replica of the track has ended.

        Requests that began before the split changed hit a user, but are not compared: of the canary's
        there are none, and after a change the short ones end first.

        Args:    owner: the user, or whoever stands for one.
                 failed: by the server's fault; a time-out is one.
                 ttft_s, tpot_s: None where there was none; left out for failed requests.
                 e2e_s: since the request came in, also where it failed.
        """
        users = self._users_now.get(track)
        if users is None:
            users = self._users_now.setdefault(track, set())
        if len(users) < _MAX_USERS:
            users.add(owner)
        if e2e_s is not None and self._clock() - e2e_s < self._since_s:
            return
        counts = self._counts_now.get(track)
        if counts is None:
            counts = self._counts_now.setdefault(track, Counts())
        if failed or timed_out:
            counts.failed += 1
            counts.timed_out += timed_out
            return
        counts.answered += 1
        if ttft_s is not None:
            counts.observe("ttft", ttft_s)
        if tpot_s is not None:
            counts.observe("tpot", tpot_s)
        if e2e_s is not None:
            counts.observe("e2e", e2e_s)

    # -- the loop ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the state, or write the first one, and go on doing so."""
        await self.tick()
        self._task = asyncio.create_task(self._run(), name="rollouts")

    async def stop(self) -> None:
        """Report what is counted so far, and end."""
        if self._task is not None:
            # Python 3.11's `wait_for`, which redis-py uses, loses a cancellation that meets its result.
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task], timeout=self._poll_s)
            self._task = None
        with suppress(StoreError):
            await self._report(self._healthy())
        await self._store.close()

    async def tick(self) -> None:
        """One round: report, read, and decide what is due."""
        async with self._ticking:
            await self._tick(self._healthy())

    async def _tick(self, healthy: Mapping[str, int]) -> None:
        try:
            await self._report(healthy)
            await self._read()
            await self._decide(healthy)
        except StoreError as error:
            if self._reachable:
                logger().warning("rollout store lost, the last state holds", reason=str(error))
            self._reachable = False
        else:
            if not self._reachable:
                logger().info("rollout store is back", store=self._store.name)
            self._reachable = True
        self._shield(healthy)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.tick()
            except Exception:
                # A gateway serves on, whatever is wrong with rollouts.
                logger().exception("a tick of the rollouts failed")

    async def _report(self, healthy: Mapping[str, int]) -> None:
        current = self._state
        users, self._users_now = self._users, {}
        self._users = {current.rollout: self._users_now}
        report = Report(
            self._gateway,
            self._clock(),
            dict(healthy),
            {period: COUNTS.dump_json(found) for period, found in self._counts.items() if found},
            {rollout: _encoded(by_track) for rollout, by_track in users.items()},
        )
        try:
            await self._store.report(report)
        except BaseException:
            for rollout, by_track in users.items():
                kept = self._users.setdefault(rollout, {})
                for track, found in by_track.items():
                    kept.setdefault(track, set()).update(found)
            raise
        self._counts = {current.period: self._counts_now}

    async def _read(self) -> None:
        there = await self._store.load()
        if there is None or (self._known and there.version < self._state.version):
            # An empty or an older store, for example restored from a snapshot, would undo a rollback.
            first = self._state
            if not self._known:
                first = first.model_copy(update={"version": 1})
            if await self._store.save(first, there.version if there is not None else None):
                self._known = True
                self._adopt(first)
            return
        if there != self._state:
            self._adopt(there)
        self._known = True

    async def _decide(self, healthy: Mapping[str, int]) -> None:
        state, now = self._state, self._now()
        if state.phase not in UNDER_WAY or state.candidate is None:
            return
        if healthy.get(state.candidate, 0):
            self._seen_healthy.add(state.candidate)
        elif state.candidate in self._seen_healthy:
            # A gateway that has just begun has seen no replica yet.
            if healthy.get(state.stable, 0):
                lost = f"{state.candidate} has no healthy replica left"
                await self._write(roll_back(state, lost, now))
            return
        number = due(state, now)
        if number is not None:
            after = await look(self._store, state, number, now)
            if after.phase == "rolled_back" and not healthy.get(state.stable, 0):
                after = held(state, after, look=number)
            await self._write(after)
        enough = healthy.get(state.candidate, 0) >= healthy.get(state.stable, 0)
        if self._state.passed and self._state.auto_promote and enough:
            await self._write(promote(self._state, now))

    async def _write(self, after: RolloutState) -> None:
        """Whoever is first decides; the others read what."""
        if await self._store.save(after, self._state.version):
            self._adopt(after)
        else:
            await self._read()

    # -- what the hot path reads -------------------------------------------------------------------

    def _adopt(self, state: RolloutState) -> None:
        before, self._state = self._state, state
        self._split = state
        self._since_s = state.since.timestamp()
        self._counts_now = self._counts.setdefault(state.period, {})
        self._users_now = self._users.setdefault(state.rollout, {})
        if before.rollout != state.rollout:
            self._seen_healthy.clear()
        if before.period != state.period:
            shown = state.model_dump(include={"rollout", "phase", "stable", "candidate", "share"})
            logger().info("rollout", **shown, reason=state.reason)
            self._on_change(before if self._known else None, state)

    def _shield(self, healthy: Mapping[str, int]) -> None:
        """Keep conversations off a candidate without a healthy replica, store or no store."""
        state = self._state
        if state.stable not in healthy:
            logger().error("the stable track is none of this gateway's", track=state.stable)
            state = RolloutState(stable=self._default, since=state.since)
        gone = state.candidate is not None and not healthy.get(state.candidate, 0)
        kept = gone and healthy.get(state.stable, 0)
        self._split = state.model_copy(update={"share": 0.0}) if kept else state

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def _encoded(by_track: Mapping[str, Set[str]]) -> dict[str, set[bytes]]:
    # Headers may hold lone surrogates, which plain UTF-8 refuses.
    return {
        track: {user.encode("utf-8", "surrogatepass") for user in users}
        for track, users in by_track.items()
        if users
    }
