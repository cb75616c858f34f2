"""Where the state and the counts lie: the seam between gateways, operators and what they share.

Every gateway writes its own totals over its own last ones, so that a write that is repeated after a
lost reply counts nothing twice; who reads adds them up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from serving.errors import InputError
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.state import RolloutState

HEALTH_S = 30.0
"""What a gateway said of its replicas is believed for so long."""
FORGOTTEN_S = 3600.0
"""A gateway that has not spoken for so long is gone."""
KEPT = 20
"""Periods and rollouts whose counts a folder keeps; Redis forgets them after `KEPT_S`."""
KEPT_S = 30 * 86400

# TypeAdapters, as counts are not Values.
COUNTS = TypeAdapter(dict[str, Counts])


class StoreError(InputError):
    """The store cannot be reached or holds something else."""


@dataclass(frozen=True)
class Report:
    """What one gateway has to say each second."""

    gateway: str
    at_s: float
    healthy: Mapping[str, int]
    """Track -> replicas that take requests."""
    counts: Mapping[int, bytes] = field(default_factory=dict)
    """Period -> its totals by track, as JSON: written now, since they go on being counted."""
    users: Mapping[int, Mapping[str, Set[bytes]]] = field(default_factory=dict)
    """Rollout -> track -> users since the last report."""


class Store(Protocol):
    """State with compare-and-set, and counts. Every call raises StoreError where it is out of reach."""

    async def load(self) -> RolloutState | None:
        """The state; None where there is none yet."""

    async def save(self, state: RolloutState, expected: int | None) -> bool:
        """Write if the version there is the expected one (None: nothing there); whether it was."""

    async def report(self, report: Report) -> None:
        """Write a gateway's totals, users and health; may be repeated."""

    async def counts(self, period: int) -> dict[str, Counts]:
        """Track -> what all gateways counted in a period."""

    async def users(self, rollout: int, track: str) -> int:
        """How many users a track has served in a rollout."""

    async def healthy(self, now_s: float) -> dict[str, int] | None:
        """Track -> healthy replicas, the least that a gateway sees; None where none spoke lately."""

    async def close(self) -> None:
        """Let connections go."""

    @property
    def name(self) -> str:
        """Where it is, without passwords."""


def open_store(redis_url: str | None = None, state_file: Path | None = None) -> Store:
    """The store that gateways and operators share; Redis where both are given.

    Raises:  InputError: neither is given.
    """
    # Either is imported only where it is used: redis is not needed for a file.
    if redis_url:
        from serving.gateway.rollout.redis_store import RedisStore

        return RedisStore.at(redis_url)
    if state_file:
        from serving.gateway.rollout.file_store import FileStore

        return FileStore(state_file)
    raise InputError(
        "no store is given",
        remedy="Use --redis URL or --state FILE (GATEWAY_REDIS_URL or GATEWAY_STATE_FILE).",
    )


async def change(store: Store, transition: Callable[[RolloutState], RolloutState]) -> RolloutState:
    """Apply a transition to whatever the state is, so that nobody's change is lost.

    Args:    transition: called again with the newer state when somebody else was faster.
    Raises:  InputError: there is no state yet, or the transition refuses.
    """
    for _ in range(20):
        state = await store.load()
        if state is None:
            raise InputError(
                f"no gateway has written a state to {store.name} yet", remedy="Start the gateway."
            )
        changed = transition(state)
        if await store.save(changed, state.version):
            return changed
    raise StoreError(f"{store.name} is changed by others all the time", remedy="Try again.")


def least_healthy(reports: list[Mapping[str, int]]) -> dict[str, int] | None:
    """Track -> the least that any gateway sees; None of no reports."""
    if not reports:
        return None
    tracks = {track for report in reports for track in report}
    return {track: min(report.get(track, 0) for report in reports) for track in sorted(tracks)}
