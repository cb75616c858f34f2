"""The load that the engine twin is timed with, and how a run is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from serving.plan import EngineArgs
from simulations.engine import simulate_replica
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.traffic import Fixed, Poisson, Schedule, SharedPrefix, Workload

PROMPT, SHARED, GROUPS, OUTPUT = 512, 128, 16, 256
LOAD = 0.8
ENGINE = EngineArgs(
    max_model_len=1024, max_num_seqs=256, max_num_batched_tokens=2048, async_scheduling=False
)
LATENCY = LatencyModel(
    variant="8b",
    base_s=1e-3,
    per_seq_s=1e-5,
    floor_s=4.5e-3,
    per_token_s=2.4e-5,
    per_kv_token_s=2e-8,
    step_overhead_s=4e-4,
    kv_blocks=25_000,
    cold_start=ColdStart(start_s=60, source="not used here"),
    fitted_range=FittedRange(prefill_tokens=2048, decode_seqs=256, kv_tokens=300_000),
    n_steps=0,
    source="assumed: an 8B model in bfloat16 on an H100",
)
FEATURES: dict[str, dict[str, Any]] = {
    "prefix caching": {"enable_prefix_caching": True},
    "long prefill threshold": {"long_prefill_token_threshold": 256},
    "priorities": {"scheduling_policy": "priority"},
    "async scheduling": {"async_scheduling": True},
    "queue limit": {"max_num_queued_reqs": 4096},
}
ALL = "all features"


def features() -> dict[str, dict[str, Any]]:
    """The changes of EngineArgs that exist, one by one and all together."""
    fields = set(EngineArgs.model_fields)
    known = {name: changes for name, changes in FEATURES.items() if set(changes) <= fields}
    together = {field: value for changes in known.values() for field, value in changes.items()}
    return {"none, shared prompts": {}, **known, ALL: together}


def engine_with(changes: dict[str, Any]) -> EngineArgs:
    """The engine of this benchmark with some arguments changed."""
    return EngineArgs.model_validate(ENGINE.model_dump() | changes)


def draw(requests: int, rate_rps: float, *, shared: bool = False) -> Schedule:
    """About so many Poisson arrivals; with shared prompts some are also more urgent than others."""
    prefix = SharedPrefix(tokens=Fixed(tokens=SHARED), groups=GROUPS) if shared else None
    schedule = Workload(
        arrivals=Poisson(rate_rps=rate_rps),
        prompt_tokens=Fixed(tokens=PROMPT - SHARED if shared else PROMPT),
        output_tokens=Fixed(tokens=OUTPUT),
        shared_prefix=prefix,
        duration_s=requests / rate_rps,
    ).schedule()
    if not shared:
        return schedule
    urgency = np.random.default_rng(0).integers(0, 3, len(schedule))
    return replace(schedule, priority=urgency)


def capacity_rps(changes: dict[str, Any], *, shared: bool) -> float:
    """Requests a second of a replica that never runs dry: the middle half of a backlog."""
    unlimited = {name: value for name, value in changes.items() if name != "max_num_queued_reqs"}
    schedule = draw(4096, 1.0, shared=shared)
    backlog = replace(schedule, arrived_at_s=np.zeros(len(schedule)))
    served = simulate_replica(backlog, LATENCY, engine_with(unlimited))
    end_s = np.sort(served["end_s"].to_numpy())
    first, last = len(end_s) // 4, 3 * len(end_s) // 4
    return float((last - first) / (end_s[last] - end_s[first]))


class Spent(NamedTuple):
    """Seconds of one run. Where CPU time is less than the time that passed, others were running."""

    cpu_s: float
    wall_s: float


def fastest(work: Callable[[], object], *, runs: int = 3, seconds: float = 2.0) -> Spent:
    """The run with the least CPU time of so many, and of as many more as fit."""
    spent: list[Spent] = []
    while len(spent) < runs or sum(one.wall_s for one in spent) < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        spent.append(Spent(time.process_time() - cpu, time.perf_counter() - wall))
    return min(spent)


def timed(schedule: Schedule, spent: Spent) -> dict[str, float]:
    """One row: requests, how many a second of CPU time, microseconds each of it and by the clock."""
    n = len(schedule)
    return {
        "requests": n,
        "requests_per_s": n / spent.cpu_s,
        "cpu_us_per_request": spent.cpu_s / n * 1e6,
        "us_per_request": spent.wall_s / n * 1e6,
    }


def one(
    schedule: Schedule, engine: EngineArgs, latency: LatencyModel = LATENCY
) -> dict[str, float]:
    """Requests a second of one replica, with their mean latency."""
    served: list[Any] = []

    def work() -> None:
        served[:] = [simulate_replica(schedule, latency, engine)["e2e_s"]]

    row = timed(schedule, fastest(work))
    if served[0].isna().any():
        raise RuntimeError(f"{int(served[0].isna().sum())} requests were not answered")
    return {**row, "e2e_mean_s": float(served[0].mean())}


def show(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    numbers = (f"{key} {value:.6g}" for key, value in row.items() if isinstance(value, int | float))
    print(f"{name:<28}" + "  ".join(numbers), flush=True)
