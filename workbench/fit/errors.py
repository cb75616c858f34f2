"""How wrong a fit is on steps that it has not seen: in all, and by shape and load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.values import Estimate
from workbench.fit import steps as terms_of
from workbench.fit.regression import Fitted
from workbench.fit.steps import FloatArray, IntArray, Steps

_RESAMPLES = 500


def heldout(
    fitted: Fitted, unseen: Steps, rng: np.random.Generator, *, mixed: bool
) -> dict[str, Estimate]:
    """Errors on held-out blocks; intervals by drawing blocks with replacement.

    Args:    mixed: of offline and server steps, where the server's are also told apart.
    """
    errors = _errors(fitted, unseen, rng)
    first = unseen.starts()
    prefills = unseen.summed(unseen.terms[:, terms_of.PREFILL]) > 0
    for name, chosen in (("prefill", prefills), ("server", unseen.server[first] & mixed)):
        if chosen.any() and not chosen.all():
            rows = unseen.where(np.repeat(chosen, np.diff([*first, len(unseen)])))
            errors[f"{name}_step_median"] = _errors(fitted, rows, rng)["step_median"]
    return errors


def by_label(
    fitted: Fitted, unseen: Steps, labels: Sequence[str], rng: np.random.Generator
) -> dict[str, Estimate]:
    """Median relative error of a step for each shape and load.

    Args:    labels: of the measurements, by `Steps.point`.
    """
    found: dict[str, Estimate] = {}
    of_step = np.array(labels)[unseen.point]
    for name in dict.fromkeys(labels):
        chosen = of_step == name
        if chosen.any():
            found[name] = _errors(fitted, unseen.where(chosen), rng)["step_median"]
    return found


def _errors(fitted: Fitted, steps: Steps, rng: np.random.Generator) -> dict[str, Estimate]:
    predicted_s, measured_s = fitted.predict(steps), steps.summed(steps.step_s)
    block: IntArray = steps.block[steps.starts()]
    relative: FloatArray = np.abs(predicted_s / measured_s - 1)
    names, position = np.unique(block, return_inverse=True)
    predicted, measured = (np.bincount(position, s) for s in (predicted_s, measured_s))
    rows = [np.flatnonzero(position == i) for i in range(len(names))]

    def of(drawn: IntArray) -> tuple[float, float, float, float]:
        chosen = relative[np.concatenate([rows[i] for i in drawn])]
        blocks = np.median(np.abs(predicted[drawn] / measured[drawn] - 1))
        total = predicted[drawn].sum() / measured[drawn].sum() - 1
        return float(np.median(chosen)), float(chosen.mean()), float(blocks), float(total)

    found = of(np.arange(len(names)))
    drawn = np.array([of(rng.integers(0, len(names), len(names))) for _ in range(_RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    counts = (
        ("step_median", len(relative)),
        ("step_mean", len(relative)),
        ("block_median", len(names)),
        ("total_time", len(names)),
    )
    return {
        name: Estimate(value=found[i], low=low[i], high=high[i], n=n)
        for i, (name, n) in enumerate(counts)
    }
