"""What a request and a step cost outside the engine's steps: gaps, HTTP, tokenizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulations.latency import LatencyModel
from simulations.traffic import Schedule
from workbench.fit.noise import centred
from workbench.fit.steps import FloatArray
from workbench.measure import Measurement

_SOON_S = 0.05
"""A first token that comes later than this after a step was not made by that step."""


def gap_s(measurements: Sequence[Measurement]) -> float:
    """Median time between two steps of a busy engine; 0 where the log counts it to the step."""
    gaps = np.concatenate([m.steps["gap_s"].dropna().to_numpy() for m in measurements])
    return max(0.0, float(np.median(gaps))) if len(gaps) else 0.0


def with_requests(model: LatencyModel, served: Sequence[Measurement]) -> LatencyModel:
    """The model with what requests cost a server outside its steps, at the lightest measured load.

    Measured TTFT is longer than that of the twin by `request_overhead_s` before the engine's queue and
    `response_overhead_s` after the step. Their sum is the median over requests. Of it the step log
    gives the second part: from the end of the step in the log to the client's first chunk. Where the
    log does not reach (other clocks, too few steps) all of it counts as before the queue.

    Requests scatter around it, also because steps do, which the twin draws anyway (`residuals`): what
    is left of the measured scatter is kept, in proportion.
    """
    from simulations.engine import simulate_replica

    lightest = min(served, key=lambda m: m.steps["running"].mean() if len(m.steps) else np.inf)
    sent = lightest.requests.dropna(subset=["sent_s", "first_token_s"])
    sent = sent.sort_values("sent_s", kind="stable").reset_index(drop=True)
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
    quiet_s = ttft_s(model.model_copy(update={"residuals": ()}))
    took_s = (sent["first_token_s"] - sent["sent_s"]).to_numpy(dtype=np.float64)[counted]
    short_s = took_s - quiet_s
    whole_s = max(0.0, float(np.median(short_s)))
    response_s = min(_response_s(lightest), whole_s)
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


def _response_s(served: Measurement) -> float:
    """Median time from the end of the step that made a first token to the client having it."""
    prefill = served.steps["prefill_tokens"] > 0
    ends_s: FloatArray = np.sort(served.steps.loc[prefill, "t_s"].to_numpy(dtype=np.float64))
    first_s = served.requests["first_token_s"].dropna().to_numpy(dtype=np.float64)
    before = np.searchsorted(ends_s, first_s, side="right") - 1
    lag_s = (first_s - ends_s[np.maximum(before, 0)])[before >= 0] if len(ends_s) else first_s[:0]
    soon = lag_s[lag_s < _SOON_S]
    return float(np.median(soon)) if 2 * len(soon) > len(first_s) else 0.0
