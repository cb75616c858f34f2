"""Which candidates are searched, with which engines, and how many replicas the peak needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from serving.errors import ExtrapolationError, InfeasibleError
from serving.plan import EngineArgs, Slo, Variant
from serving.values import one_line
from simulations.bounds import capacity_rps, running_at
from simulations.limits import check_range, fitted_max_num_seqs
from simulations.traffic import Workload
from workbench.tune.candidate import Candidate
from workbench.tune.space import SearchSpace

_MINUTE_S = 60.0


@dataclass(frozen=True)
class Admitted:
    """What may be searched.

    Attributes:
        candidates: those that may win.
        seqs: choices of max_num_seqs by variant, the largest first.
        fastest: the variant whose replica sustains the highest rate.
        peak_replicas: how many of the fastest the busiest minute needs.
        running: sequences that a replica of the fastest runs at that rate.
        rejected: the others by variant, with the reason.
    """

    candidates: tuple[Candidate, ...]
    seqs: Mapping[str, tuple[int, ...]]
    fastest: str
    peak_replicas: int
    running: float
    rejected: Mapping[str, str]


def admit(
    candidates: Sequence[Candidate],
    workload: Workload,
    slo: Slo,
    engine: EngineArgs,
    space: SearchSpace,
) -> Admitted:
    """Reject what loses too much quality, was not measured far enough, or is too slow alone.

    Raises:  InfeasibleError: nothing is left.
    """
    kept: list[Candidate] = []
    seqs: dict[str, tuple[int, ...]] = {}
    rejected: dict[str, str] = {}
    capacity: dict[str, tuple[float, float]] = {}
    for candidate in candidates:
        name = candidate.variant.name
        if space.variants is not None and name not in space.variants:
            rejected[name] = f"variants(={space.variants}) of the search space leave it out"
            continue
        choices = space.seqs_choices(engine, fitted_max_num_seqs(candidate.latency))
        doubt = _quality_doubt(candidate.variant, slo) or _size_doubt(candidate, choices, space)
        if doubt:
            rejected[name] = doubt
            continue
        try:
            capacity[name] = _capacity(candidate, workload, slo, engine, space, choices[0])
        except (ExtrapolationError, InfeasibleError) as error:
            rejected[name] = str(error)
            continue
        except ValidationError as error:
            rejected[name] = one_line(error)
            continue
        kept.append(candidate)
        seqs[name] = choices
    if not kept:
        reasons = "; ".join(f"{name}: {why.rstrip('.')}" for name, why in rejected.items())
        raise InfeasibleError(
            f"no variant can be searched ({reasons})",
            remedy="Loosen that limit, or measure what is missing.",
        )
    fastest = max(capacity, key=lambda name: capacity[name])
    rate_rps, running = capacity[fastest]
    peak = _peak_replicas(workload, rate_rps)
    return Admitted(tuple(kept), seqs, fastest, peak, running, rejected)


def _capacity(
    candidate: Candidate,
    workload: Workload,
    slo: Slo,
    engine: EngineArgs,
    space: SearchSpace,
    max_num_seqs: int,
) -> tuple[float, float]:
    """The highest rate of one replica, and what it runs then, on the first engine that is searched.

    Raises:  ValidationError: no engine; ExtrapolationError, InfeasibleError.
    """
    first, *others = (
        EngineArgs.model_validate(
            engine.model_dump() | {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": tokens}
        )
        for tokens in space.tokens_choices(engine)
    )
    for own in (first, *others):
        check_range(candidate.latency, own, workload)
    rate_rps = capacity_rps(workload, candidate.latency, first, slo)
    return rate_rps, running_at(rate_rps, workload, candidate.latency, first)


def _size_doubt(candidate: Candidate, choices: tuple[int, ...], space: SearchSpace) -> str:
    if choices:
        return ""
    return (
        f"max_num_seqs(={space.max_num_seqs}) is beyond what was measured"
        f" ({candidate.latency.fitted_range.decode_seqs} sequences)"
    )


def _quality_doubt(variant: Variant, slo: Slo) -> str:
    """Why a variant's quality rules it out; empty where it does not."""
    if variant.quality is None:
        return "" if variant.parent is None else "its quality against its parent was not measured"
    if variant.quality.verdict(slo.max_quality_loss) != "loses":
        return ""
    loss = 1 - variant.quality.worst_recovery
    return f"loses {loss:.1%} of its score, more than max_quality_loss(={slo.max_quality_loss})"


def _peak_replicas(workload: Workload, capacity: float) -> int:
    """Replicas that the busiest minute needs."""
    arrived_at_s = workload.schedule().arrived_at_s
    window_s = min(_MINUTE_S, workload.duration_s)
    busiest = np.bincount((arrived_at_s // window_s).astype(np.int64)).max()
    return max(1, int(np.ceil(busiest / window_s / capacity)))
