"""Non-negative, relative, robust regression of step times on physical terms.

    minimise  sum w_i (p_i / q_i - y_i / q_i)^2,   p = max(floor, X b),  b >= 0

with q the prediction of the round before, so that errors count as shares of a step and large steps
do not rule. The weights w start as those of least absolute errors (which half of the steps cannot
spoil) and end as Tukey's bisquare: a step that another process held up for ten times its length has
no say, while ordinary scatter counts as in least squares. The floor is the median of the steps that
it explains.

Source:  Lawson and Hanson 1974 (NNLS); Holland and Welsch 1977 (iteratively reweighted, bisquare
         with c = 4.685).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from workbench.fit.steps import ATTENTION, BoolArray, FloatArray, IntArray, Steps

_LAD_ROUNDS = 15
_ROUNDS = 40
_C = 4.685
_MIN_FLOOR_SHARE = 0.05
_FLOOR_STARTS = (0.1, 0.3, 0.6)
_WORTH = 0.98
_FOLDS = 4


@dataclass(frozen=True)
class Fitted:
    """Coefficients by column of `Steps.terms`, in seconds."""

    coefficients: FloatArray
    floor_s: float

    def predict(self, terms: FloatArray) -> FloatArray:
        """Seconds of each step. The floor is of the engine; a server's overhead comes on top."""
        engine = np.maximum(self.floor_s, terms[:, :-1] @ self.coefficients[:-1])
        return np.asarray(engine + terms[:, -1] * self.coefficients[-1], dtype=np.float64)


def regress(steps: Steps, columns: BoolArray, *, with_floor: bool) -> Fitted:
    """Fit the chosen columns, from several starts where there is a floor."""
    if not with_floor:
        return _descend(steps, columns, 0.0)
    engine_s = steps.step_s[~steps.server] if (~steps.server).any() else steps.step_s
    starts = [float(np.quantile(engine_s, q)) for q in _FLOOR_STARTS]
    found = [_descend(steps, columns, start) for start in starts]
    return min(found, key=lambda fitted: median_error(fitted, steps))


def choose(steps: Steps, columns: BoolArray, rng: np.random.Generator) -> Fitted:
    """Fit with or without floor and prefill attention, as cross-validation over blocks decides.

    A term must lower the error on unseen blocks by 2 % to be kept: one that the data do not
    support would only take a share of what another term explains.
    """
    folds = _folds(steps.block, rng)
    without = columns.copy()
    without[ATTENTION] = False
    best, best_error = (without, False), _validated(steps, without, folds, with_floor=False)
    for candidate in ((columns, False), (without, True), (columns, True)):
        error = _validated(steps, candidate[0], folds, with_floor=candidate[1])
        if error < _WORTH * best_error:
            best, best_error = candidate, error
    return regress(steps, best[0], with_floor=best[1])


def median_error(fitted: Fitted, steps: Steps) -> float:
    """Median absolute relative error."""
    return float(np.median(np.abs(fitted.predict(steps.terms) / steps.step_s - 1)))


def _folds(block: IntArray, rng: np.random.Generator) -> IntArray:
    names, position = np.unique(block, return_inverse=True)
    return np.asarray(rng.permutation(len(names))[position] % _FOLDS)


def _validated(steps: Steps, columns: BoolArray, folds: IntArray, *, with_floor: bool) -> float:
    """Mean absolute relative error on each fold by a fit to the others, gross outliers cut off."""
    errors = []
    for fold in range(_FOLDS):
        inside = folds != fold
        if inside.all() or not inside.any():
            continue
        fitted = regress(steps.where(inside), columns, with_floor=with_floor)
        outside = steps.where(~inside)
        errors.append(np.abs(fitted.predict(outside.terms) / outside.step_s - 1))
    pooled = np.concatenate(errors)
    return float(np.minimum(pooled, 3 * np.median(pooled)).mean())


def _descend(steps: Steps, columns: BoolArray, floor_s: float) -> Fitted:
    """Iterate coefficients, floor and weights from one start of the floor (0: none)."""
    wanted_floor = floor_s > 0
    terms, took = steps.terms, steps.step_s
    scale, weights = took, np.ones(len(took))
    above = terms[:, :-1].sum(axis=1) > np.median(terms[:, :-1].sum(axis=1))
    above = above if wanted_floor else np.ones(len(took), dtype=bool)
    fitted = Fitted(np.zeros(terms.shape[1]), floor_s)
    for turn in range(_ROUNDS):
        before = fitted
        coefficients = _solve(
            terms[above], took[above], weights[above] / scale[above] ** 2, columns
        )
        if wanted_floor and (~above).mean() >= _MIN_FLOOR_SHARE:
            overhead_s = terms[~above, -1] * coefficients[-1]
            floor_s = max(0.0, float(np.median(took[~above] - overhead_s)))
        elif wanted_floor:
            floor_s = 0.0  # too few steps to speak of one
        fitted = Fitted(coefficients, floor_s)
        scale = np.maximum(fitted.predict(terms), 1e-9)
        error = took / scale - 1
        if turn < _LAD_ROUNDS:
            weights = 1 / np.maximum(np.abs(error), 1e-4)
        else:
            spread = max(1.4826 * float(np.median(np.abs(error))), 1e-6)
            weights = np.clip(1 - (error / (_C * spread)) ** 2, 0, None) ** 2
        if wanted_floor:
            above = terms[:, :-1] @ coefficients[:-1] > floor_s
            if above.sum() < columns.sum():
                return _descend(steps, columns, 0.0)
        if turn > _LAD_ROUNDS and _same(before, fitted):
            break
    return fitted


def _solve(
    terms: FloatArray, took: FloatArray, weights: FloatArray, columns: BoolArray
) -> FloatArray:
    """Weighted NNLS of the chosen columns, zero elsewhere. Normalised: the terms differ by 1e6."""
    joined = np.column_stack([terms[:, columns], took])
    norm = np.sqrt(weights @ joined**2)
    norm[norm == 0] = 1.0
    joined = joined / norm
    # A root of the normal matrix has the same least squares in a few rows, whatever its rank.
    values, vectors = np.linalg.eigh(joined.T @ (weights[:, None] * joined))
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    solution, _ = nnls(root[:, :-1], root[:, -1])
    found = np.zeros(terms.shape[1])
    found[columns] = solution * norm[-1] / norm[:-1]
    return found


def _same(one: Fitted, other: Fitted) -> bool:
    return bool(
        np.allclose(one.coefficients, other.coefficients, rtol=1e-5, atol=0)
        and np.isclose(one.floor_s, other.floor_s, rtol=1e-5)
    )
