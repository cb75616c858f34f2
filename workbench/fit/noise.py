"""How measured times scatter around predicted ones, as what was measured and not as a law."""

from __future__ import annotations

import numpy as np

from workbench.fit.steps import FloatArray

STEPS = 200
REQUESTS = 100


def parts(values: FloatArray, count: int) -> tuple[float, ...]:
    """The means of `count` equally likely parts of the values, ascending.

    Unlike points of the distribution function they keep the mean and the far end: a step in five
    hundred that takes ten times as long is in the last of them. Fewer values are given as they are.
    """
    ordered = np.sort(values)
    if len(ordered) <= count:
        return tuple(float(value) for value in ordered)
    return tuple(float(part.mean()) for part in np.array_split(ordered, count))


def residuals(measured_s: FloatArray, predicted_s: FloatArray) -> tuple[float, ...]:
    """Measured over predicted time of steps that were not fitted.

    Not centred: the fit is to ordinary steps (median ratio near 1), and what other processes took now
    and then lifts the mean above 1 by as much as it lifted the measured total. Steps that follow one
    another are more alike than draws from these, so sums over many steps scatter somewhat too little.
    """
    return parts(measured_s / np.maximum(predicted_s, 1e-12), STEPS)


def centred(values_s: FloatArray) -> tuple[float, ...]:
    """Deviations from the median."""
    return parts(values_s - np.median(values_s), REQUESTS) if len(values_s) else ()
