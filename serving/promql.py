"""PromQL as data: what the bundle exports as text is what the twin evaluates.

Only what our signals and alerts need. `simulations.metrics.promql` gives the same expressions their
values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, eq=False)
class Series:
    """The last sample of every series of a metric whose labels match, for example `status=~"5.*"`."""

    metric: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rate:
    """rate(): the increase of counters per second over a window that ended offset_s ago."""

    of: Series
    window_s: int
    offset_s: int = 0


@dataclass(frozen=True, eq=False)
class Average:
    """avg_over_time() of gauges."""

    of: Series
    window_s: int
    offset_s: int = 0


@dataclass(frozen=True, eq=False)
class Aggregate:
    """One value for each combination of the labels `by`, which are of `pod` and `le`."""

    function: Literal["sum", "avg", "max"]
    of: Expression
    by: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Quantile:
    """histogram_quantile() over series with the label `le`."""

    share: float
    of: Expression


@dataclass(frozen=True, eq=False)
class Compute:
    """Arithmetic, or a comparison that keeps what holds, between equal labels or with a number."""

    left: Expression
    sign: Literal["+", "-", "*", "/", ">", "<"]
    right: Expression | float


@dataclass(frozen=True, eq=False)
class Both:
    """`left and on() right`: the left side, where there is anything on the right."""

    left: Expression
    right: Expression


@dataclass(frozen=True, eq=False)
class Either:
    """`left or right`, of sides without labels."""

    left: Expression
    right: Expression


@dataclass(frozen=True, eq=False)
class Constant:
    """vector(): one value without labels."""

    value: float


Expression = Series | Rate | Average | Aggregate | Quantile | Compute | Both | Either | Constant


def text(expression: Expression, *, scope: str = "", pod: str = "pod") -> str:
    """The expression in PromQL.

    Args:    scope: matchers that every series gets.
             pod: what stands for the label `pod` in `by (...)`.
    """

    def said(part: Expression | float) -> str:
        match part:
            case Series(metric, where):
                kept = ",".join(matcher for matcher in (scope, *where) if matcher)
                return f"{metric}{{{kept}}}" if kept else metric
            case Rate(of, window_s, offset_s):
                return f"rate({said(of)}[{_span(window_s)}]{_ago(offset_s)})"
            case Average(of, window_s, offset_s):
                return f"avg_over_time({said(of)}[{_span(window_s)}]{_ago(offset_s)})"
            case Aggregate(function, of, by):
                labels = ", ".join(pod if label == "pod" else label for label in by)
                return f"{function}({said(of)})" + (f" by ({labels})" if by else "")
            case Quantile(share, of):
                return f"histogram_quantile({share:g}, {said(of)})"
            case Compute(left, sign, right):
                return f"{nested(left)} {sign} {nested(right)}"
            case Both(left, right):
                return f"{nested(left)} and on() {nested(right)}"
            case Either(left, right):
                return f"{nested(left)} or {nested(right)}"
            case Constant(value):
                return f"vector({value:g})"
            case float() | int():
                return f"{part:g}"
        raise TypeError(f"{part!r} is no expression")

    def nested(part: Expression | float) -> str:
        inner = said(part)
        return f"({inner})" if isinstance(part, Compute | Both | Either) else inner

    return said(expression)


def parts(expression: Expression | float) -> Iterator[Expression]:
    """The expression and all that it is made of, from the outside in."""
    if isinstance(expression, float | int):
        return
    yield expression
    match expression:
        case Rate(of, _) | Average(of, _) | Aggregate(_, of) | Quantile(_, of):
            yield from parts(of)
        case Compute(left, _, right) | Both(left, right) | Either(left, right):
            yield from parts(left)
            yield from parts(right)


def metrics(expression: Expression) -> tuple[str, ...]:
    """Names of the metrics that it reads, in their order."""
    names = (part.metric for part in parts(expression) if isinstance(part, Series))
    return tuple(dict.fromkeys(names))


def reach_s(expression: Expression) -> float:
    """How far back it looks: its longest window with its offset, seconds."""
    ranges = (part for part in parts(expression) if isinstance(part, Rate | Average))
    return max((part.window_s + part.offset_s for part in ranges), default=0)


def _span(seconds: int) -> str:
    return f"{seconds // 60}m" if seconds % 60 == 0 else f"{seconds}s"


def _ago(seconds: int) -> str:
    return f" offset {_span(seconds)}" if seconds else ""
