"""Predicted against measured, metric by metric: how `verify` and `fidelity` compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from math import inf, isfinite, nan

import numpy as np
import pandas as pd

from serving.values import Estimate
from workbench.measure.study import ratio_over_repeats


def compare(
    predicted: Mapping[str, Estimate],
    measured: pd.DataFrame,
    target: Callable[[str], float],
    *,
    noise_floors: float = 0.0,
) -> pd.DataFrame:
    """Hold each prediction against the median of its repeats.

    Args:    predicted: by metric.
             measured: a row per repeat, a column per metric.
             target: the relative error that is still kept, by metric.
             noise_floors: an error within so many noise floors is kept as well.
    Returns: metric, predicted, low, high, measured, measured_low, measured_high (least and most of the
             repeats), relative_error (predicted over measured, less one), error_low, error_high (95 %,
             Student's t on logarithms over repeats; NaN of one), noise_floor, target, tolerance, holds.
    """
    rows = []
    for metric, estimate in predicted.items():
        values = measured[metric].to_numpy(dtype=np.float64)
        median = float(np.median(values))
        error = estimate.value / median - 1 if median > 0 else inf
        floor, wanted = noise_floor(values.tolist()), target(metric)
        tolerance = float(np.nanmax([wanted, noise_floors * floor]))
        rows.append(
            {
                "metric": metric,
                "predicted": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "measured": median,
                "measured_low": float(values.min()),
                "measured_high": float(values.max()),
                "relative_error": error,
                **_interval(estimate.value, values.tolist()),
                "noise_floor": floor,
                "target": wanted,
                "tolerance": tolerance,
                "holds": isfinite(error) and abs(error) <= tolerance,
            }
        )
    return pd.DataFrame(rows)


def noise_floor(values: Sequence[float]) -> float:
    """The relative error of one repeat against another: median over ordered pairs; NaN of one repeat.

    What was measured twice differs by this: no prediction can be seen to be better.
    """
    errors = [abs(a / b - 1) for a, b in permutations(values, 2) if b > 0]
    return float(np.median(errors)) if errors else nan


def _interval(predicted: float, values: Sequence[float]) -> dict[str, float]:
    """95 % interval of the relative error over repeats."""
    if predicted <= 0 or min(values) <= 0 or not all(map(isfinite, values)):
        return {"error_low": nan, "error_high": nan}
    ratio = ratio_over_repeats(predicted / value for value in values)
    return {"error_low": ratio.low - 1, "error_high": ratio.high - 1}
