"""What an operator may do, with the checks that need to know which replicas are healthy."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime

from serving.errors import InputError
from serving.gateway.analysis import Analysis
from serving.gateway.rollout import state as states
from serving.gateway.rollout.state import RolloutState
from serving.gateway.rollout.store import Store, change


async def start(
    store: Store,
    track: str,
    *,
    shares: tuple[float, ...],
    rule: Analysis,
    auto_promote: bool = False,
) -> RolloutState:
    """Begin a canary.

    Raises:  InputError: no healthy replica, a rollout under way, or no gateway that says.
    """
    await _need(store, track, 1)
    return await change(
        store,
        lambda state: states.start(
            state, track, _now(), shares=shares, rule=rule, auto_promote=auto_promote
        ),
    )


async def switch(
    store: Store,
    track: str,
    *,
    rule: Analysis | None = None,
    auto_promote: bool = False,
    min_replicas: int | None = None,
) -> RolloutState:
    """Send everything to the track at once.

    Args:    min_replicas: healthy ones that it needs; None: as many as the stable track has.
    Raises:  InputError: too few healthy replicas, or a canary under way.
    """
    await _need(store, track, min_replicas)
    return await change(
        store,
        lambda state: states.switch(state, track, _now(), rule=rule, auto_promote=auto_promote),
    )


async def promote(
    store: Store, *, force: bool = False, min_replicas: int | None = None
) -> RolloutState:
    """Make the candidate the stable track.

    Raises:  InputError: it has not passed, or has too few healthy replicas for all traffic.
    """
    before = await store.load()
    if before is not None and before.phase in states.UNDER_WAY and before.candidate is not None:
        await _need(store, before.candidate, min_replicas)
    return await change(store, lambda state: states.promote(state, _now(), force=force))


async def roll_back(store: Store, reason: str, *, force: bool = False) -> RolloutState:
    """Send everything back at once.

    Raises:  InputError: nothing to return from, or nobody there to return to and `force` is False.
    """
    before, healthy = await store.load(), await store.healthy(time.time())
    if before is not None and healthy is not None and not force:
        to = before.candidate if before.phase == "promoted" else before.stable
        away = before.stable if before.phase == "promoted" else before.candidate
        if to is not None and not healthy.get(to) and healthy.get(away or ""):
            raise InputError(
                f"{to} has no healthy replica to return to", remedy="Start one, or use --force."
            )
    return await change(store, lambda state: states.roll_back(state, reason, _now()))


async def warnings(store: Store, state: RolloutState) -> tuple[str, ...]:
    """What a canary that was just begun may suffer from: too few replicas for its shares.

    With fewer than share / (1 - share) of the stable ones each of its replicas has more to do than an
    old one, and a sound version looks slow.
    """
    healthy = await store.healthy(time.time()) or {}
    has, beside = healthy.get(state.candidate or "", 0), healthy.get(state.stable, 0)
    return tuple(
        f"{state.candidate} has {has} healthy replicas and needs {needed} at a share of {share:g}"
        for share in state.shares
        if (needed := replicas_for(share, beside)) > has
    )


def replicas_for(share: float, stable_replicas: int) -> int:
    """Replicas of a canary none of which has more to do than a stable one."""
    return max(1, math.ceil(share / (1 - share) * stable_replicas - 1e-9))


async def _need(store: Store, track: str, replicas: int | None) -> None:
    healthy = await store.healthy(time.time())
    if healthy is None:
        raise InputError(
            f"no gateway has told {store.name} of its replicas lately",
            remedy="Start the gateway, with the same store.",
        )
    if track not in healthy:
        raise InputError(
            f"track(={track!r}) is none of {', '.join(sorted(healthy))}", remedy="Name one of them."
        )
    if replicas is None:
        now = await store.load()
        replicas = healthy.get(now.stable, 1) if now is not None else 1
    if healthy[track] < max(1, replicas):
        raise InputError(
            f"{track} has {healthy[track]} healthy replicas and needs {max(1, replicas)}",
            remedy="Wait until they are ready, or see --min-replicas."
            if replicas > 1
            else "Wait until one is ready.",
        )


def _now() -> datetime:
    return datetime.now(UTC)
