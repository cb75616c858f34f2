"""How a rollout stands: what `serving rollout status` prints and a gateway may show."""

from __future__ import annotations

from datetime import UTC, datetime

from serving.gateway.analysis import Latency
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.state import RolloutState
from serving.gateway.rollout.store import Store
from serving.values import Value


class TrackStatus(Value):
    """One track in the current step, or in the one that ended with a rollback."""

    track: str
    role: str
    """stable, candidate, previous (after a promotion) or idle."""
    share: float
    healthy: int | None
    """Replicas, the least that a gateway sees; None where none spoke lately."""
    requests: int
    failed: int
    timed_out: int
    error_share: float | None
    ttft_p99_s: float | None
    ttft_mean_s: float | None
    tpot_mean_s: float | None
    e2e_mean_s: float | None
    users_hit: int
    """In the whole rollout."""
    requests_needed: int
    """Until the rule has its minimum sample; 0 where nothing is judged."""


class Status(Value):
    """The state, and what its tracks have shown."""

    store: str
    state: RolloutState
    tracks: tuple[TrackStatus, ...]
    next_look_in_s: float | None

    @property
    def latency(self) -> Latency:
        return self.state.rule.latency if self.state.rule is not None else "tpot"


async def status_of(store: Store, state: RolloutState, now: datetime | None = None) -> Status:
    """The figures behind a state.

    Raises:  StoreError: the store cannot be reached.
    """
    now = now or datetime.now(UTC)
    # A rollback begins a new period; what led to it is in the one before.
    counts = await store.counts(state.period - (state.phase == "rolled_back"))
    healthy = await store.healthy(now.timestamp())
    names = dict.fromkeys((state.stable, state.candidate, *(healthy or {}), *counts))
    tracks = [
        _track(name, state, counts.get(name, Counts()), await store.users(state.rollout, name))
        for name in names
        if name is not None
    ]
    if healthy is not None:
        tracks = [t.model_copy(update={"healthy": healthy.get(t.track, 0)}) for t in tracks]
    return Status(
        store=store.name, state=state, tracks=tuple(tracks), next_look_in_s=_next_look(state, now)
    )


def _track(name: str, state: RolloutState, counts: Counts, users: int) -> TrackStatus:
    role, share = "idle", 0.0
    if name == state.stable:
        role, share = "stable", 1 - state.share
    elif name == state.candidate:
        role = "previous" if state.phase == "promoted" else "candidate"
        share = state.share
    judged = state.phase == "canary" or (state.phase == "switched" and role == "candidate")
    least = state.rule.min_requests if state.rule is not None and judged else 0
    return TrackStatus(
        track=name,
        role=role,
        share=share,
        healthy=None,
        requests=counts.requests,
        failed=counts.failed,
        timed_out=counts.timed_out,
        error_share=counts.error_share,
        ttft_p99_s=counts.quantile_s("ttft", 0.99),
        ttft_mean_s=counts.mean_s("ttft"),
        tpot_mean_s=counts.mean_s("tpot"),
        e2e_mean_s=counts.mean_s("e2e"),
        users_hit=users,
        requests_needed=max(0, least - counts.requests) if role != "idle" else 0,
    )


def _next_look(state: RolloutState, now: datetime) -> float | None:
    if state.rule is None or state.phase not in ("canary", "switched"):
        return None
    passed_s = (now - state.since).total_seconds()
    return max(0.0, (state.looks + 1) * state.rule.look_s - passed_s)
