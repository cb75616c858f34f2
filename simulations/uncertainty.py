"""How much of a prediction's interval is the latency model's: the same traffic, other coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.values import Estimate

_Z = 1.959964


def with_draws(
    metrics: Mapping[str, Estimate], drawn: Sequence[Mapping[str, float]]
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Widen intervals by what the coefficients might as well have been.

    Traffic and coefficients are independent, so half-widths add in squares: that over seeds, and 1.96
    standard deviations over draws under one seed.

    Args:    metrics: with intervals over seeds, by the fitted coefficients.
             drawn: the same metrics by draws of the coefficients, all with one seed.
    Returns: {name: Estimate} with both, and {name: share of the squared half-width that is the
             model's, 0 to 1}; the metrics as they are and {} with fewer than two draws.
    """
    if len(drawn) < 2:
        return dict(metrics), {}
    widened: dict[str, Estimate] = {}
    of_model: dict[str, float] = {}
    for name, found in metrics.items():
        values = np.array([row.get(name, np.nan) for row in drawn])
        model = _Z * float(np.nanstd(values, ddof=1)) if np.isfinite(values).sum() > 1 else 0.0
        half = float(np.hypot((found.high - found.low) / 2, model))
        middle = (found.high + found.low) / 2
        widened[name] = found.model_copy(update={"low": middle - half, "high": middle + half})
        of_model[name] = (model / half) ** 2 if half > 0 else 0.0
    return widened, of_model
