"""The values of PromQL expressions over samples, with Prometheus's semantics.

A vector is a table for each time: a row per target (the label `pod`), a column per combination of the
other labels. Many times are evaluated at once, for the price of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from serving.errors import InputError
from serving.promql import (
    Aggregate,
    Average,
    Both,
    Compute,
    Constant,
    Either,
    Expression,
    Quantile,
    Rate,
    Series,
)
from simulations.metrics.samples import Flags, FloatArray, Samples, Window

Labels = Mapping[str, str]
_MATCHER = re.compile(r'(?P<label>\w+)(?P<sign>=~|=)"(?P<value>.*)"')


@dataclass(frozen=True)
class Columns:
    """Where the series of a metric lie in a table of samples."""

    samples: Samples
    begin: int
    labels: tuple[Labels, ...] = ({},)
    """Of each column from there on, without `pod`."""


@dataclass(frozen=True)
class Vector:
    """What an expression gives: NaN is a value, absence is none."""

    values: FloatArray
    """float array (times, rows, columns)."""
    present: Flags
    labels: tuple[Labels, ...] = ({},)
    """Of the columns."""

    @property
    def scalars(self) -> list[float | None]:
        """Of a vector without labels its value at each time; None where it is empty."""
        return [
            float(value) if there else None
            for value, there in zip(self.values[:, 0, 0], self.present[:, 0, 0], strict=True)
        ]


@dataclass
class Query:
    """Evaluates expressions at some times; what expressions have in common is evaluated once.

    Args:    kept: {id of a table of samples: bool array (places,), the pods that count}; None: all.
    """

    layout: Mapping[str, Columns]
    at_s: FloatArray
    """float array (times,)."""
    lookback_s: float = 300.0
    kept: Mapping[int, Flags] | None = None
    chosen: dict[Series, list[int]] = field(default_factory=dict)
    """Columns that matchers choose: one dictionary may serve many queries over one layout."""
    _done: dict[Expression, Vector] = field(default_factory=dict)
    _windows: dict[tuple[int, float, float], Window] = field(default_factory=dict)
    _rates: dict[tuple[int, float, float], FloatArray] = field(default_factory=dict)
    """Of all columns."""

    def __call__(self, expression: Expression) -> Vector:
        if expression not in self._done:
            self._done[expression] = self._evaluate(expression)
        return self._done[expression]

    def _evaluate(self, expression: Expression) -> Vector:
        match expression:
            case Series():
                return self._instant(expression)
            case Rate():
                return self._rate(expression)
            case Aggregate():
                return aggregated(expression.function, self(expression.of), expression.by)
            case Compute():
                right = expression.right
                other = right if isinstance(right, float | int) else self(right)
                return computed(self(expression.left), expression.sign, other)
            case Quantile():
                return quantile(expression.share, self(expression.of))
            case Average():
                return self._average(expression)
            case Both():
                found, other = self(expression.left), self(expression.right)
                return Vector(found.values, _both(found, other), found.labels)
            case Either():
                one, other = self(expression.left), self(expression.right)
                values = np.where(one.present, one.values, other.values)
                return Vector(values, one.present | other.present, one.labels)
            case Constant():
                return Vector(np.array([[[expression.value]]]), np.array([[[True]]]))

    # -- selectors -------------------------------------------------------------------------------

    def _columns(self, series: Series) -> tuple[Columns, list[int]]:
        found = self.layout.get(series.metric)
        if found is None:
            raise InputError(
                f"metric(={series.metric!r}) is not simulated",
                remedy=f"Use one of {', '.join(self.layout)}.",
            )
        if series not in self.chosen:
            kept = [i for i, labels in enumerate(found.labels) if matches(labels, series.where)]
            self.chosen[series] = kept
        return found, self.chosen[series]

    def _there(self, samples: Samples, there: Flags, columns: int) -> Flags:
        if self.kept is not None:
            there = there & self.kept[id(samples)]
        if columns == 1:
            return there[:, :, None]
        return np.broadcast_to(there[:, :, None], (*there.shape, columns))

    def _instant(self, series: Series) -> Vector:
        where, chosen = self._columns(series)
        position, there = where.samples.last(self.at_s, self.lookback_s)
        columns = [where.begin + i for i in chosen]
        values = where.samples.raw[np.arange(position.shape[1]), position][:, :, columns]
        labels = tuple(where.labels[i] for i in chosen)
        return Vector(values, self._there(where.samples, there, len(chosen)), labels)

    def _ranged(
        self, series: Series, window_s: float, offset_s: float, least: int
    ) -> tuple[Columns, list[int], Window, Flags]:
        """The columns of a range vector, its window, and which rows have at least so many samples."""
        where, chosen = self._columns(series)
        samples = where.samples
        key = (id(samples), window_s, offset_s)
        if key not in self._windows:
            until_s = self.at_s - offset_s
            self._windows[key] = samples.between(until_s - window_s, until_s)
        window = self._windows[key]
        there = self._there(samples, window.count >= least, len(chosen))
        return where, chosen, window, there

    def _rate(self, expression: Rate) -> Vector:
        of, window_s, offset_s = expression.of, expression.window_s, expression.offset_s
        where, chosen, window, there = self._ranged(of, window_s, offset_s, 2)
        columns = [where.begin + i for i in chosen]
        labels = tuple(where.labels[i] for i in chosen)
        key = (id(where.samples), window_s, offset_s)
        if key not in self._rates:
            self._rates[key] = rate(where.samples, window)
        return Vector(self._rates[key][:, :, columns], there, labels)

    def _average(self, expression: Average) -> Vector:
        of, window_s, offset_s = expression.of, expression.window_s, expression.offset_s
        where, chosen, window, there = self._ranged(of, window_s, offset_s, 1)
        raw = where.samples.raw[:, :, [where.begin + i for i in chosen]]
        total = np.where(window.inside[..., None], raw, 0.0).sum(axis=2)
        values = total / np.maximum(window.count, 1)[:, :, None]
        return Vector(values, there, tuple(where.labels[i] for i in chosen))


def matches(labels: Labels, where: tuple[str, ...]) -> bool:
    """Whether labels satisfy matchers; `pod` is not among them."""
    for matcher in where:
        found = _MATCHER.fullmatch(matcher)
        if found is None:
            raise InputError(f"matcher(={matcher!r}) is not read", remedy="Use = or =~.")
        value, wanted = labels.get(found["label"], ""), found["value"]
        if not (value == wanted if found["sign"] == "=" else re.fullmatch(wanted, value)):
            return False
    return True


def rate(samples: Samples, window: Window) -> FloatArray:
    """Increase per second of counters, extrapolated to the ends of the window.

    To an end that is no further than 1.1 times the mean distance of samples, else by half a distance;
    and never to before the counter was 0. Values of rows with fewer than two samples mean nothing.

    Returns: float array (times, places, columns).
    Source:  Prometheus, promql/functions.go extrapolatedRate.
    """
    rows, enough = np.arange(len(samples.times)), window.count > 1
    since_s, until_s = window.since_s[:, None], window.until_s[:, None]
    first_s = np.where(enough, samples.times[rows, window.first], since_s)[:, :, None]
    last_s = np.where(enough, samples.times[rows, window.last], until_s)[:, :, None]
    sampled_s = last_s - first_s
    apart_s = sampled_s / np.maximum(window.count - 1, 1)[:, :, None]
    to_start_s, to_end_s = first_s - since_s[:, :, None], until_s[:, :, None] - last_s
    increase = samples.unreset[rows, window.last] - samples.unreset[rows, window.first]
    start = samples.raw[rows, window.first]
    to_zero_s = np.full_like(increase, np.inf)
    np.divide(sampled_s * start, increase, out=to_zero_s, where=(increase > 0) & (start >= 0))
    if samples.prometheus >= 3:
        to_start_s = np.where(to_start_s >= 1.1 * apart_s, apart_s / 2, to_start_s)
        to_start_s = np.minimum(to_start_s, to_zero_s)
    else:
        to_start_s = np.minimum(to_start_s, to_zero_s)
        to_start_s = np.where(to_start_s >= 1.1 * apart_s, apart_s / 2, to_start_s)
    to_end_s = np.where(to_end_s >= 1.1 * apart_s, apart_s / 2, to_end_s)
    stretched = increase * ((sampled_s + to_start_s + to_end_s) / sampled_s)
    per_second: FloatArray = stretched / (until_s - since_s)[:, :, None]
    return per_second


def aggregated(function: str, of: Vector, by: tuple[str, ...]) -> Vector:
    """One value per combination of labels: `pod` keeps the rows, `le` the columns."""
    axes = tuple(axis for axis, label in ((1, "pod"), (2, "le")) if label not in by)
    labels = of.labels if "le" in by else ({},)
    present = _any(of, axes)
    if axes and all(of.values.shape[axis] == 1 for axis in axes):  # each is alone
        return Vector(of.values, present, labels)
    if function == "max":
        return Vector(
            np.where(of.present, of.values, -np.inf).max(axis=axes, keepdims=True), present, labels
        )
    total = np.where(of.present, of.values, 0.0).sum(axis=axes, keepdims=True)
    if function == "avg":
        total = total / np.maximum(of.present.sum(axis=axes, keepdims=True), 1)
    return Vector(total, present, labels)


def computed(left: Vector, sign: str, right: Vector | float) -> Vector:
    """Arithmetic and comparisons between equal labels; what does not hold, or has no partner, is gone."""
    other, there = (right.values, right.present) if isinstance(right, Vector) else (right, np.True_)
    present = left.present & there
    with np.errstate(divide="ignore", invalid="ignore"):
        match sign:
            case "+":
                return Vector(left.values + other, present, left.labels)
            case "-":
                return Vector(left.values - other, present, left.labels)
            case "*":
                return Vector(left.values * other, present, left.labels)
            case "/":
                return Vector(left.values / other, present, left.labels)
            case ">":
                return Vector(left.values, present & (left.values > other), left.labels)
        return Vector(left.values, present & (left.values < other), left.labels)


def quantile(share: float, of: Vector) -> Vector:
    """histogram_quantile(): linear within the bucket that holds the rank; NaN of nothing.

    The lowest bucket begins at 0; a rank in the +Inf bucket gives the last finite edge.

    Source:  Prometheus, promql/quantile.go bucketQuantile and ensureMonotonic.
    """
    edges = np.array([float(labels["le"].replace("+Inf", "inf")) for labels in of.labels])
    counts = np.maximum.accumulate(of.values, axis=2)
    total = counts[..., -1:]
    rank = share * total
    bucket = np.minimum((counts < rank).sum(axis=2, keepdims=True), len(edges) - 1)
    earlier = np.maximum(bucket - 1, 0)
    reached = np.take_along_axis(counts, bucket, axis=2)
    below = np.where(bucket > 0, np.take_along_axis(counts, earlier, axis=2), 0.0)
    begin, end = (
        np.where(bucket > 0, edges[earlier], 0.0),
        edges[np.minimum(bucket, len(edges) - 2)],
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        values = begin + (end - begin) * ((rank - below) / (reached - below))
    values = np.where(bucket == len(edges) - 1, edges[-2], values)
    values = np.where(total == 0, np.nan, values)
    return Vector(values, _any(of, (2,)))


def _any(of: Vector, axes: tuple[int, ...]) -> Flags:
    found: Flags = np.asarray(of.present.any(axis=axes, keepdims=True))
    return found


def _both(left: Vector, right: Vector) -> Flags:
    return left.present & _any(right, (1, 2))
