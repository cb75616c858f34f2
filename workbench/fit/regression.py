"""Non-negative, relative, robust regression of step times on physical terms with a knee.

    minimise  sum w_i (p_i / q_i - y_i / q_i)^2,   p = X b + c max(knee, tokens),   b, c >= 0

with q the prediction of the round before, so that errors count as shares of a step and large steps
do not rule. max(floor, c tokens) is c max(knee, tokens) with floor = c knee: for a given knee the
form is linear, and the knee is found by trying. The weights w start as those of least absolute
errors (which half of the steps cannot spoil) and end as Tukey's bisquare: a step that another process
held up for ten times its length has no say, while ordinary scatter counts as in least squares. Steps
with prefill scatter otherwise than those without, and each kind is judged by its own scatter and
weighted so that the rare ones are heard (`rows_of`). Time that is waited for a launch is taken out first,
by what the fit so far says of the rest (`waits`).

Source:  Lawson and Hanson 1974 (NNLS); Holland and Welsch 1977 (iteratively reweighted, bisquare
         with c = 4.685).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from simulations.latency import padded, uncaptured
from workbench.fit import steps as terms_of
from workbench.fit.steps import FloatArray, IntArray, Steps

BASE, SEQS, TOKENS, KV, ATTENTION, PREFILL_STEP, SERVER = range(7)
"""Coefficients: as `Steps.terms`, one for tokens of either kind and one for any prefill at all."""
_TERMS = (
    terms_of.BASE,
    terms_of.SEQS,
    terms_of.PREFILL,
    terms_of.KV,
    terms_of.ATTENTION,
    terms_of.PREFILL,
    terms_of.SERVER,
)
_LAD_ROUNDS = 15
_ROUNDS = 40
_TRIAL_ROUNDS = 10
_NEARBY_ROUNDS = 8
_REACHES = (0.3, 0.15, 0.07, 0.03)
_C = 4.685
_KNEES = 24
_LEAST_ABOVE = 10
"""Steps that are needed above the knee, to know what a token costs."""
_WAITS = 3
"""Rounds in which what is waited for launches and what the rest takes are told apart."""
_LEAST_OWN = 0.1
_WORTH = 0.98
"""Of the error, below which a knee or padding is believed."""
_NOTHING = 1e-6
"""Errors that are rounding."""


@dataclass(frozen=True)
class Form:
    """Which terms there are: a flag for each coefficient, a knee, CUDA graphs and their launches."""

    columns: tuple[bool, ...] = (True,) * len(_TERMS)
    knee: bool = False
    captured_tokens: int = 0
    """Of the largest CUDA graph; 0 where there is none."""
    pad_to_tokens: tuple[int, ...] = ()
    launches_s: tuple[float, float] = (0.0, 0.0)
    """Of steps with a prefill: up to the largest CUDA graph, and above."""


@dataclass(frozen=True)
class Fitted:
    """Coefficients in seconds, and the tokens of a step up to which reading the weights takes longer."""

    form: Form
    coefficients: FloatArray
    knee_tokens: float = 0.0

    @property
    def floor_s(self) -> float:
        return float(self.coefficients[TOKENS] * self.knee_tokens)

    def predict(self, steps: Steps) -> FloatArray:
        """Seconds of each spell of steps."""
        return np.asarray(_design(steps, self.form, self.knee_tokens) @ self.coefficients) + waits(
            self, steps
        )


@dataclass(frozen=True)
class Rows:
    """What is the same for every knee: measured time, kind and weight of each spell."""

    took: FloatArray
    kind: IntArray
    """How much of the launch is the host's: see `rows_of`."""
    times: FloatArray


def fit_terms(
    steps: Steps,
    sizes: tuple[int, ...],
    *,
    mixed: bool,
    launches_s: tuple[float, float] = (0.0, 0.0),
) -> Fitted:
    """Fit all terms: none is chosen by trial, and what costs nothing is fitted as next to nothing.

    A choice by cross-validation hung on the deal of the folds (experiments/LOG.md). Only the knee and
    padding, which bend the form, must lower the error by 2 %: real ones do by far more.

    Args:    sizes: that the engine captured, to which it may round a step's tokens up; () for none.
             mixed: of offline and server steps, whose difference is a term of its own.
             launches_s: as `Form.launches_s`.
    """
    captured = sizes[-1] if sizes else 0
    columns = tuple(c != SERVER or mixed for c in range(len(_TERMS)))
    rows = rows_of(steps, captured)
    best = regress(steps, Form(columns, captured_tokens=captured, launches_s=launches_s))
    best_loss = _loss(best.predict(steps), rows)
    for change in ({"knee": True}, {"pad_to_tokens": sizes}):
        form = replace(best.form, **change)
        if form == best.form:
            continue
        found = regress(steps, form)
        loss = _loss(found.predict(steps), rows)
        if loss < _WORTH * best_loss - _NOTHING:
            best, best_loss = found, loss
    return best


def regress(steps: Steps, form: Form) -> Fitted:
    """Fit the terms of a form, the knee by trial."""
    whole = rows_of(steps, form.captured_tokens)
    found, left = None, whole
    for _ in range(1 + _WAITS * (max(form.launches_s) > 0)):
        if found is not None:
            left = _without_waits(found, steps, whole)
        knee = _knee(steps, left, form) if form.knee else 0.0
        found = Fitted(form, descend(_design(steps, form, knee), left, form.columns), knee)
    assert found is not None
    return _near(found, steps, left)


def redraw(fitted: Fitted, steps: Steps, rng: np.random.Generator) -> Fitted:
    """Fit again with weights drawn at random: what the coefficients might as well have been.

    A Bayesian bootstrap (exponential weights, Rubin 1981) over blocks, times a weight for each
    measurement: so that a slow spell, and a shape that the form does not meet, show as uncertainty.
    Of steps without either the intervals are too wide, by up to 1.7.

    Begins at what was fitted, whose weights already know the outliers; the knee is tried nearby.
    """
    first = steps.starts()
    drawn = np.ones(len(first))
    for group in (steps.block[first], steps.point[first]):
        names, position = np.unique(group, return_inverse=True)
        drawn *= rng.exponential(size=len(names))[position]
    rows = _without_waits(fitted, steps, rows_of(steps, fitted.form.captured_tokens))
    return _near(fitted, steps, replace(rows, times=rows.times * drawn))


def _without_waits(fitted: Fitted, steps: Steps, rows: Rows) -> Rows:
    """What spells took of themselves, by what a fit says of their launches."""
    least_s = _LEAST_OWN * rows.took
    return replace(rows, took=np.maximum(rows.took - waits(fitted, steps), least_s))


def waits(fitted: Fitted, steps: Steps) -> FloatArray:
    """(spells,): seconds for which the engine waits for launches that nothing hides.

    As in the twin: a step is launched while the one before it computes, and is over at the earliest
    with its launch. Of the first step of a spell nothing is known, and a step like it came before.
    """
    form = fitted.form
    if max(form.launches_s) == 0:
        return np.zeros(len(steps.starts()))
    prefill, decode = (steps.terms[:, c] for c in (terms_of.PREFILL, terms_of.DECODE))
    large = uncaptured(prefill + decode, form.captured_tokens)
    launch_s = np.where(large, form.launches_s[1], form.launches_s[0]) * (prefill > 0)
    plain_s = np.asarray(_of_steps(steps, form, fitted.knee_tokens) @ fitted.coefficients)
    took_s = plain_s.copy()
    first = np.zeros(len(steps), dtype=bool)
    first[steps.starts()] = True
    for i in np.flatnonzero(launch_s > took_s):
        took_s[i] = max(took_s[i], launch_s[i] - took_s[i if first[i] else i - 1])
    return steps.summed(took_s - plain_s)


def _near(fitted: Fitted, steps: Steps, rows: Rows) -> Fitted:
    """The best fit with a knee near that of another fit."""
    best, best_loss = fitted, np.inf
    for reach in _REACHES if fitted.knee_tokens > 0 else (0.0,):
        begun = best
        for step in (-1, 0, 1):
            knee = begun.knee_tokens * (1 + reach) ** step
            design = _design(steps, fitted.form, knee)
            coefficients = begun.coefficients
            found = descend(design, rows, fitted.form.columns, coefficients, rounds=_NEARBY_ROUNDS)
            loss = _loss(design @ found, rows)
            if loss < best_loss:
                best, best_loss = Fitted(fitted.form, found, knee), loss
    return best


def condition(steps: Steps) -> float:
    """Condition number of step, sequences, tokens and KV tokens, as shares of a step's time."""
    design = _design(steps, Form(), 0.0) / steps.summed(steps.step_s)[:, None]
    columns = design[:, [BASE, SEQS, TOKENS, KV]]
    length = np.sqrt((columns**2).sum(axis=0))
    if not length.all():
        return float("inf")
    values = np.linalg.eigvalsh((columns / length).T @ (columns / length))
    return float(np.sqrt(values[-1] / max(values[0], 1e-18)))


def rows_of(steps: Steps, captured_tokens: int = 0) -> Rows:
    """Each spell once, weighted by the root of how many there are of its kind.

    Kinds: without prefill (0), with one (1), and with one of more tokens than any CUDA graph holds (2).
    By their number alone a hundred decodes for a prefill would hide what a prefill costs; at equal
    weight for each kind a dozen prefills would bend what a decode costs.
    """
    prefill, decode = (steps.terms[:, c] for c in (terms_of.PREFILL, terms_of.DECODE))
    launched = (prefill > 0) & uncaptured(prefill + decode, captured_tokens)
    kind = (steps.summed(prefill) > 0).astype(np.int64)
    kind[steps.summed(launched.astype(np.float64)) > 0] = 2
    times = 1 / np.sqrt(np.bincount(kind, minlength=3))[kind]
    return Rows(steps.summed(steps.step_s), kind, times / times.mean())


def _design(steps: Steps, form: Form, knee: float) -> FloatArray:
    """(spells, 7): the terms, summed over the steps of each spell."""
    return steps.summed(_of_steps(steps, form, knee))


def _of_steps(steps: Steps, form: Form, knee: float) -> FloatArray:
    terms = steps.terms[:, _TERMS].copy()
    prefill, decode = (steps.terms[:, c] for c in (terms_of.PREFILL, terms_of.DECODE))
    terms[:, TOKENS] = np.maximum(knee, padded(prefill, decode, form.pad_to_tokens))
    terms[:, PREFILL_STEP] = prefill > 0
    return terms


def _knee(steps: Steps, rows: Rows, form: Form) -> float:
    """The knee with the least absolute error: a coarse search by factors, then a fine one."""
    tokens = steps.terms[:, terms_of.PREFILL] + steps.terms[:, terms_of.DECODE]
    tokens = np.sort(tokens[tokens > 0])
    if len(tokens) <= _LEAST_ABOVE or tokens[-_LEAST_ABOVE] <= tokens[0]:
        return 0.0
    low, high = float(tokens[0]), float(tokens[-_LEAST_ABOVE])
    tried: dict[float, float] = {}
    for _ in range(3):
        for knee in np.geomspace(low, high, _KNEES if not tried else _KNEES // 4):
            design = _design(steps, form, float(knee))
            found = descend(design, rows, form.columns, rounds=_TRIAL_ROUNDS, robust=False)
            tried[float(knee)] = _loss(design @ found, rows)
        names = sorted(tried)
        at = names.index(min(tried, key=lambda knee: tried[knee]))
        low, high = names[max(at - 1, 0)], names[min(at + 1, len(names) - 1)]
    return min(tried, key=lambda knee: tried[knee])


def _loss(predicted: FloatArray, rows: Rows) -> float:
    return cut_mean(np.abs(predicted / rows.took - 1), rows.kind, rows.times)


def cut_mean(errors: FloatArray, kind: IntArray, times: FloatArray | None = None) -> float:
    """The mean, where nothing counts more than three times the median of its kind."""
    cut = errors.copy()
    for one in np.unique(kind):
        of = kind == one
        cut[of] = np.minimum(cut[of], 3 * np.median(cut[of]))
    return float(np.average(cut, weights=times))


def descend(
    design: FloatArray,
    rows: Rows,
    columns: tuple[bool, ...],
    start: FloatArray | None = None,
    *,
    rounds: int = _ROUNDS,
    robust: bool = True,
) -> FloatArray:
    """Iterate coefficients and weights, from measured times or from coefficients.

    Args:    robust: end with the bisquare; else least absolute errors throughout.
    """
    scale, weights = rows.took, np.ones(len(rows.took))
    warm = start is not None
    found = np.zeros(design.shape[1]) if start is None else start
    for turn in range(rounds):
        if turn or warm:
            scale = np.maximum(design @ found, 1e-9)
            error = rows.took / scale - 1
            if robust and (warm or turn >= _LAD_ROUNDS):
                weights = _bisquare(error, rows.kind)
            else:
                weights = 1 / np.maximum(np.abs(error), 1e-3)
        before, found = found, _solve(design, rows.took, weights * rows.times / scale**2, columns)
        settled = turn > (0 if warm or not robust else _LAD_ROUNDS)
        if settled and np.allclose(before, found, rtol=1e-5, atol=0):
            break
    return found


def _bisquare(error: FloatArray, kind: IntArray) -> FloatArray:
    weights = np.zeros(len(error))
    for one in np.unique(kind):
        of = kind == one
        spread = max(1.4826 * float(np.median(np.abs(error[of]))), 1e-6)
        weights[of] = np.clip(1 - (error[of] / (_C * spread)) ** 2, 0, None) ** 2
    return weights


def _solve(
    terms: FloatArray, took: FloatArray, weights: FloatArray, columns: tuple[bool, ...]
) -> FloatArray:
    """Weighted NNLS of the chosen columns, zero elsewhere. Normalised: the terms differ by 1e6."""
    chosen = np.asarray(columns)
    joined = np.column_stack([terms[:, chosen], took])
    norm = np.sqrt(weights @ joined**2)
    norm[norm == 0] = 1.0
    joined = joined / norm
    # A root of the normal matrix has the same least squares in a few rows, whatever its rank.
    values, vectors = np.linalg.eigh(joined.T @ (weights[:, None] * joined))
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    solution, _ = nnls(root[:, :-1], root[:, -1])
    found = np.zeros(terms.shape[1])
    found[chosen] = solution * norm[-1] / norm[:-1]
    return found
