"""What a request and a step cost outside the engine's steps: gaps, HTTP, tokenizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from simulations.latency import LatencyModel
from simulations.traffic import Schedule
from workbench.fit.noise import centred
from workbench.fit.prefills import first_token_steps, in_order
from workbench.fit.steps import FloatArray
from workbench.measure import Measurement

_SOON_S = 0.05
"""A first token that comes later than this after a step, or before it, was not made by that step."""
_LEAST_LOADS = 3
_APART = 8.0
"""The most over the fewest sequences, below which what one more costs is not told."""


def gap_s(measurements: Sequence[Measurement]) -> float:
    """Median time between two steps of a busy engine; 0 where the log counts it to the step."""
    gaps = np.concatenate([m.steps["gap_s"].dropna().to_numpy() for m in measurements])
    return max(0.0, float(np.median(gaps))) if len(gaps) else 0.0


def with_requests(model: LatencyModel, served: Sequence[Measurement]) -> LatencyModel:
    """The model with what requests cost a server outside its steps, at the lightest measured load.

    Measured TTFT is longer than that of the twin by `request_overhead_s` before the engine's queue and
    `response_overhead_s` after the step. Their sum is the median over requests. Of it the step log
    gives the second part: from the end of the step in the log to the client's first chunk, and over all
    loads how much of that each sequence of the step adds. Where the log does not reach (other clocks,
    too few steps) all of it counts as before the queue.

    Requests scatter around it, also because steps do, which the twin draws anyway (`residuals`): what
    is left of the measured scatter is kept, in proportion.
    """
    from simulations.engine import simulate_replica

    lightest = min(served, key=lambda m: m.steps["running"].mean() if len(m.steps) else np.inf)
    sent = in_order(lightest.requests).reset_index(drop=True)
    schedule = Schedule(
        sent["sent_s"].to_numpy(dtype=np.float64),
        sent["prompt_tokens"].to_numpy(dtype=np.int64),
        np.maximum(sent["output_tokens"].to_numpy(dtype=np.int64), 1),
    )

    def ttft_s(of: LatencyModel) -> FloatArray:
        served = simulate_replica(schedule, of, lightest.engine, concurrency=lightest.batch)
        return np.asarray(served["ttft_s"].to_numpy()[counted], dtype=np.float64)

    counted = sent["counted"].to_numpy(dtype=bool)
    if not counted.any():
        return model
    behind_s, per_seq_s = _behind(served, lightest)
    model = model.model_copy(update={"response_per_seq_s": per_seq_s})
    quiet_s = ttft_s(model.model_copy(update={"residuals": ()}))
    took_s = (sent["first_token_s"] - sent["sent_s"]).to_numpy(dtype=np.float64)[counted]
    short_s = took_s - quiet_s
    whole_s = max(0.0, float(np.median(short_s)))
    response_s = min(behind_s, whole_s)
    changes = {
        "request_overhead_s": whole_s - response_s,
        "response_overhead_s": response_s,
        "request_noise_s": centred(short_s * _left(short_s, ttft_s(model) - quiet_s)),
    }
    return model.model_copy(update=changes)


def _left(measured_s: FloatArray, drawn_s: FloatArray) -> float:
    """The share of a spread that is left when a part of it, which is independent, is taken out."""
    whole, part = (
        float(np.subtract(*np.quantile(values, [0.9, 0.1]))) for values in (measured_s, drawn_s)
    )
    return float(np.sqrt(max(0.0, 1 - (part / whole) ** 2))) if whole > 0 else 0.0


def _behind(served: Sequence[Measurement], lightest: Measurement) -> tuple[float, float]:
    """Seconds from the end of a step to the client: at the lightest load, and for each sequence.

    The second is the slope of repeated medians (Siegel 1982) over the medians of measurements, by their
    sequences a step.
    """
    found = {m.name: lag for m in served if (lag := _lag(m)) is not None}
    if lightest.name not in found:
        return 0.0, 0.0
    seqs, lags_s = np.array(list(found.values())).T
    per_seq_s = 0.0
    if len(found) >= _LEAST_LOADS and seqs.max() >= _APART * seqs.min():
        per_seq_s = max(0.0, float(stats.siegelslopes(lags_s, seqs).slope))
    light_seqs, light_s = found[lightest.name]
    return max(0.0, light_s - per_seq_s * light_seqs), per_seq_s


def _lag(served: Measurement) -> tuple[float, float] | None:
    """Median sequences of the steps that made first tokens, and seconds from there to the client."""
    steps = served.steps
    made = first_token_steps(steps, served.requests)
    if made is None:
        return None
    sent = in_order(served.requests)
    lag_s = (
        sent["first_token_s"].to_numpy(dtype=np.float64)
        - steps["t_s"].to_numpy(dtype=np.float64)[made]
    )
    seqs = (steps["prefill_requests"] + steps["decode_seqs"]).to_numpy(dtype=np.float64)[made]
    soon = (lag_s >= 0) & (lag_s < _SOON_S)
    if 2 * soon.sum() <= len(lag_s):
        return None
    return float(np.median(seqs[soon])), float(np.median(lag_s[soon]))
