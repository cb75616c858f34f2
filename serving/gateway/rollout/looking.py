"""One look at a rollout: from the counts of both tracks to the next state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from serving.gateway.analysis import Analysis, Served, fails_more, is_slower, judge
from serving.gateway.rollout.counts import Counts
from serving.gateway.rollout.state import UNDER_WAY, RolloutState, judged
from serving.gateway.rollout.store import Store


def due(state: RolloutState, now: datetime) -> int | None:
    """The number of the look that is to be taken now; None when it is not time.

    Looks are numbered by time and the number is part of the state, so that however many gateways there
    are no more is taken than the rule corrects for.
    """
    if state.rule is None or state.phase not in UNDER_WAY:
        return None
    number = int(((now - state.since).total_seconds() + 1e-6) / state.rule.look_s)
    return number if number > state.looks else None


async def look(store: Store, state: RolloutState, number: int, now: datetime) -> RolloutState:
    """The state that follows from what the store has counted.

    Raises:  StoreError: the store cannot be reached.
    """
    assert state.rule is not None
    assert state.candidate is not None
    new, old = await compared(store, state)
    verdict = judge(new, old, state.rule, looks_for(state, number))
    return judged(
        state,
        verdict,
        now,
        look=number,
        figures=figures(new, old, state.rule),
        users_hit=await store.users(state.rollout, state.candidate),
    )


async def compared(store: Store, state: RolloutState) -> tuple[Served, Served]:
    """(candidate, stable): what both show in this step; after a switch, the old one before it."""
    assert state.rule is not None
    counts = await store.counts(state.period)
    before = counts if state.phase == "canary" else await store.counts(state.period - 1)
    return (
        _served(counts, state.candidate, state.rule),
        _served(before, state.stable, state.rule),
    )


def looks_for(state: RolloutState, number: int) -> int:
    """The looks that a look is corrected for.

    While a version that has passed waits to be promoted nobody knows how often one will look: the k-th
    look then counts as k (k + 1) times all planned ones. As the sum of 1 / (k (k + 1)) is 1, all of them
    together, for ever, risk no more than one planned look does.
    """
    planned = state.planned_looks
    if state.passed_at_look is None:
        return planned
    k = max(1, number - state.passed_at_look)
    return planned * k * (k + 1)


def figures(new: Served, old: Served, rule: Analysis) -> str:
    """What was seen, in a line: shares of errors and mean latencies with the p of each test."""
    parts = [f"{_errors(new)} against {_errors(old)} failed"]
    errors_p = fails_more(new, old, rule.max_error_increase)
    if errors_p < 1:
        parts[0] += f" (p = {errors_p:.1e})"
    if sum(new.buckets) and sum(old.buckets):
        slower = f"mean {rule.latency.upper()} {new.mean_s:.4g} s against {old.mean_s:.4g} s"
        slower_p = is_slower(new, old, rule.max_slowdown)
        parts.append(slower + (f" (p = {slower_p:.1e})" if slower_p < 1 else ""))
    else:
        parts.append(f"no {rule.latency.upper()} of both was seen")
    return "; ".join(parts)


def _errors(shown: Served) -> str:
    share = f" ({shown.failed / shown.requests:.2%})" if shown.requests else ""
    return f"{shown.failed} of {shown.requests}{share}"


def _served(counts: Mapping[str, Counts], track: str | None, rule: Analysis) -> Served:
    return counts.get(track or "", Counts()).served(rule.latency)
