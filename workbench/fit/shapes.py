"""What was measured, by the lengths of its requests, and whether that tells the terms apart.

At one length of prompt and answer the tokens in the cache grow in step with the sequences that hold
them, so that no fit can say which of the two a step's time comes from: it fits, and is wrong wherever
lengths differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.errors import MeasurementError
from workbench.fit.regression import condition
from workbench.fit.steps import Steps
from workbench.measure import Measurement

LEAST = 3
"""Distinct lengths of prompt and answer."""
WORST_CONDITION = 30.0
"""Source:  Belsley, Kuh & Welsch 1980, Regression Diagnostics: from 30 on collinearity does harm."""
_REMEDY = (
    "Measure other lengths too (`sweep_batches(..., shapes=((192, 16), (16, 128)))`,"
    " or a load with drawn lengths), or force it."
)


def label(measurement: Measurement) -> str:
    """Lengths and load: "64/64 x8" for a closed loop, "~90/60 @5/s" for drawn lengths at a rate."""
    pairs = _pairs(measurement)
    prompt, output = pairs.mean(axis=0)
    drawn = "~" if len(pairs) > 1 else ""
    rate = measurement.rate_rps
    load = f"x{measurement.batch}" if measurement.batch else f"@{rate or 0:.3g}/s"
    return f"{drawn}{prompt:.0f}/{output:.0f} {load}"


def same_shape(steps: Steps, measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Why the steps cannot tell the terms apart, if so."""
    pairs = np.unique(np.concatenate([_pairs(m) for m in measurements]), axis=0)
    if len(pairs) < LEAST:
        seen = ", ".join(f"{prompt}/{output}" for prompt, output in pairs)
        return (
            f"prompt/output lengths(={seen}) are fewer than {LEAST}: nothing tells what a sequence"
            " costs from what its cache costs",
        )
    number = condition(steps)
    if number > WORST_CONDITION:
        return (
            f"the condition number(={number:.0f}) of sequences, tokens and KV tokens is above"
            f" {WORST_CONDITION:.0f}: they grew together in everything that was measured",
        )
    return ()


def check_shapes(
    steps: Steps, measurements: Sequence[Measurement], *, force: bool
) -> tuple[str, ...]:
    """Refuse steps that cannot tell the terms apart; with `force` say so.

    Raises:  MeasurementError: too few lengths, or terms that grow together.
    """
    doubts = same_shape(steps, measurements)
    if doubts and not force:
        raise MeasurementError(doubts[0], remedy=_REMEDY)
    return doubts


def _pairs(measurement: Measurement) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(n, 2): the distinct lengths of prompt and answer."""
    requests = measurement.requests
    if requests.empty:
        drawn = measurement.workload.schedule()
        columns = [drawn.prompt_tokens, drawn.output_tokens]
    else:
        done = requests.dropna(subset=["first_token_s"])
        columns = [done[name].to_numpy() for name in ("prompt_tokens", "output_tokens")]
    pairs = np.column_stack(columns).astype(np.int64)
    return np.unique(pairs, axis=0)
