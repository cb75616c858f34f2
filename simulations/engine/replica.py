"""One vLLM replica under a schedule of requests, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from serving.errors import InputError
from serving.plan import EngineArgs
from serving.values import Estimate
from simulations.engine._state import NEVER
from simulations.engine.dataplane import DataPlane
from simulations.engine.options import SchedulerOptions
from simulations.latency import LatencyModel
from simulations.traffic import ClosedLoop, Schedule, Workload

COLUMNS = ("ttft", "tpot", "e2e")
OUTCOMES = (
    *("unfinished", "unfinished", "unfinished", "unfinished"),
    *("answered", "aborted", "rejected", "failed", "cached"),
)
"""By status of a request."""
_OUTCOME = ("sent_s", "first_s", "end_s", "preemptions", "hit_tokens", "status")
"""What the table is made of, with the lengths that were asked for."""
_ENDS = pd.CategoricalDtype(list(dict.fromkeys(OUTCOMES)))
_CODES = _ENDS.categories.get_indexer(pd.Index(OUTCOMES)).astype(np.int8)


def simulate_replica(
    schedule: Schedule,
    latency: LatencyModel,
    engine: EngineArgs,
    *,
    options: SchedulerOptions | None = None,
    concurrency: int | None = None,
    seed: int = 0,
    noise: bool = True,
    step_times_s: Sequence[float] = (),
) -> pd.DataFrame:
    """Serve a schedule with one replica that is ready from the start, until all are over.

    Args:    options: None takes those of the engine (`SchedulerOptions.of`).
             concurrency: closed loop: this many users share the requests, each sending the next one
                 when the last is answered; arrival times are then outcomes.
             seed: of the noise.
             noise: draw each step's and each request's share of the measured scatter.
             step_times_s: seconds of each step in order, gaps included, instead of the model's.
    Returns: DataFrame, one row per request in the schedule's order: arrived_at_s, first_token_s,
             end_s (as the client sees them), prompt_tokens, output_tokens, ttft_s, tpot_s (NaN for
             one token), e2e_s, preemptions, cached_tokens, outcome (answered, aborted, rejected,
             or unfinished where it was never sent).
    Raises:  InputError: a request that this engine would refuse or could never finish.
    """
    check_lengths(schedule, latency, engine)
    options = options or SchedulerOptions.of(engine, latency)
    plane = DataPlane(
        schedule,
        latency,
        options,
        concurrency=concurrency,
        noise=noise,
        seed=seed,
        step_times_s=step_times_s,
    )
    plane.advance(NEVER, [plane.add()])
    noise_s = latency.request_noise_s if noise else ()
    outcomes = {name: np.ascontiguousarray(plane.requests[name]) for name in _OUTCOME}
    del plane  # its records are as large as a row of the table
    outcomes |= {"prompt": schedule.prompt_tokens, "output": schedule.output_tokens}
    return request_frame(outcomes, noise_s, seed)


def trace_replica(
    schedule: Schedule,
    latency: LatencyModel,
    options: SchedulerOptions,
    *,
    concurrency: int | None = None,
    step_times_s: Sequence[float] = (),
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The same without noise, and with every step.

    Returns: requests as `simulate_replica`; steps: decided_s, start_s, end_s, attention,
             prefill_tokens, prefill_seqs, decode_seqs, kv_tokens, running, waiting, blocks_used,
             preemptions (by then), hit_tokens; pairs: step (from 1), request, tokens.
    """
    tokens = int((schedule.prompt_tokens + schedule.output_tokens).sum())
    room = 4 * tokens + 1000
    while True:
        plane = DataPlane(
            schedule,
            latency,
            options,
            concurrency=concurrency,
            noise=False,
            step_times_s=step_times_s,
            traced=(room, room),
        )
        plane.advance(NEVER, [plane.add()])
        if max(plane.traced) <= room:
            break
        room = 2 * max(plane.traced)
    pairs = pd.DataFrame(plane.pairs, columns=["step", "request", "tokens"])
    return request_frame(plane.requests), pd.DataFrame(plane.steps), pairs


def check_lengths(schedule: Schedule, latency: LatencyModel, engine: EngineArgs) -> None:
    """Refuse requests that vLLM would refuse, or that fit in no KV cache of this size."""
    if len(schedule) == 0:
        return
    longest = int((schedule.prompt_tokens + schedule.output_tokens).max())
    if longest > engine.max_model_len:
        raise InputError(
            f"a request of prompt + output = {longest} tokens exceeds"
            f" max_model_len(={engine.max_model_len})",
            remedy="Raise max_model_len or lower the workload's max_tokens.",
        )
    room = (latency.kv_blocks - 1) * latency.block_size_tokens
    if longest - 1 > room:
        raise InputError(
            f"a request of prompt + output = {longest} tokens does not fit the KV cache"
            f" of {room} tokens",
            remedy="Give the engine more KV cache or lower the workload's max_tokens.",
        )


def request_frame(
    requests: dict[str, npt.NDArray[Any]],
    noise_s: Sequence[float] = (),
    seed: int = 0,
    *,
    asked_s: npt.NDArray[np.float64] | None = None,
) -> pd.DataFrame:
    """Outcomes as a table: NaN where something never happened.

    Args:    requests: see `DataPlane.requests`; the table may keep what is contiguous.
             asked_s: when each was sent first, where some were sent again; latencies count from it.
             noise_s: what is drawn from for each request's first token and end, () for nothing.
    """
    first_s = np.ascontiguousarray(requests["first_s"])
    end_s = np.ascontiguousarray(requests["end_s"])
    if len(noise_s):
        rng = np.random.default_rng([seed, len(first_s)])
        first_s = first_s + rng.choice(np.asarray(noise_s), len(first_s))
        end_s = np.maximum(end_s + rng.choice(np.asarray(noise_s), len(first_s)), first_s)
    sent_s = np.ascontiguousarray(requests["sent_s"] if asked_s is None else asked_s)
    ttft_s = first_s - sent_s
    e2e_s = end_s - sent_s
    tpot_s = e2e_s - ttft_s
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot_s /= requests["output"] - 1
    tpot_s[requests["output"] <= 1] = np.nan
    status = requests["status"]
    return pd.DataFrame(
        {
            "arrived_at_s": sent_s,
            "first_token_s": first_s,
            "end_s": end_s,
            "prompt_tokens": requests["prompt"].astype(np.int64),
            "output_tokens": requests["output"].astype(np.int64),
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
            "e2e_s": e2e_s,
            "preemptions": requests["preemptions"].astype(np.int64),
            "cached_tokens": requests["hit_tokens"].astype(np.int64),
            "outcome": pd.Categorical.from_codes(_CODES[status], dtype=_ENDS),
        },
        copy=False,  # the columns are new, and a second copy of all is most of the peak memory
    )


def simulate_workload(
    workload: Workload, latency: LatencyModel, engine: EngineArgs, *, seed: int = 0
) -> pd.DataFrame:
    """`simulate_replica` on what a workload draws with `workload.seed + seed`."""
    schedule = workload.at(seed=workload.seed + seed).schedule()
    users = workload.arrivals.concurrency if isinstance(workload.arrivals, ClosedLoop) else None
    return simulate_replica(schedule, latency, engine, concurrency=users, seed=workload.seed + seed)


def percentiles(requests: pd.DataFrame) -> dict[str, float]:
    """{'ttft_p50_s': ..., ..., 'e2e_p99_s': ...} of the rows given."""
    named: dict[str, float] = {}
    for column in COLUMNS:
        values = requests[f"{column}_s"].dropna().to_numpy()
        for q in (50, 99):
            named[f"{column}_p{q}_s"] = float(np.percentile(values, q)) if len(values) else np.nan
    return named


def estimate(values: Sequence[float]) -> Estimate:
    """Mean with its 95 % t-interval; of one value, the value itself (n says that it is one)."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    half = 0.0
    if len(array) > 1:
        half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return Estimate(value=mean, low=mean - half, high=mean + half, n=len(array))
