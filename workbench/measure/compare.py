"""Paired comparison: is b faster than a, and by how much, with an interval that can be believed?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from serving.errors import InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from serving.values import shown_html
from simulations.traffic import ClosedLoop, Workload
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.measurement import Measurement, Mode
from workbench.measure.points import START, Point, StartEngine, enter, once, part

if TYPE_CHECKING:
    import plotly.graph_objects as go

COMPARED = ("ttft_p50_s", "tpot_p50_s", "e2e_p50_s", "output_tokens_per_s")
_RESAMPLES = 4000
_LEVEL = 0.95
_FEWEST = 6


@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        start: how to get at its engine, for example a server that runs; None starts vLLM.
    """

    name: str
    variant: Variant
    engine_args: EngineArgs
    start: StartEngine | None = None

    def _repr_html_(self) -> str:
        return shown_html(self.name) + self.variant._repr_html_() + self.engine_args._repr_html_()


@dataclass(frozen=True)
class Comparison:
    """Ratios b / a.

    Attributes:
        rows: metric, a and b (medians over repeats), ratio, low, high, repeats, verdict.
        doubts: reasons against runs that were used all the same.
        narrow_enough: whether every interval became as narrow as asked.
    """

    a: str
    b: str
    rows: pd.DataFrame
    narrow_enough: bool
    doubts: tuple[str, ...] = ()

    def text(self) -> str:
        """As JSON."""
        said = {"a": self.a, "b": self.b, "narrow_enough": self.narrow_enough}
        rows = self.rows.to_dict("records")
        return json.dumps({**said, "doubts": list(self.doubts), "rows": rows}, indent=2) + "\n"

    def write(self, path: Path) -> Path:
        """Write as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text())
        return path

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Read what `write` wrote."""
        said = json.loads(path.read_text())
        rows, doubts = pd.DataFrame(said.pop("rows")), tuple(said.pop("doubts"))
        return cls(**said, rows=rows, doubts=doubts)

    def _repr_html_(self) -> str:
        return shown_html(f"{self.b} against {self.a}", self.rows, doubts=self.doubts)

    def plot(self) -> go.Figure:
        """The ratio of each metric with its interval."""
        from workbench.report.value_figures import ratios

        return ratios(self)


def compare(
    a: Arm,
    b: Arm,
    workload: Workload,
    *,
    folder: Path,
    metrics: Sequence[str] = COMPARED,
    narrow: float = 0.05,
    min_repeats: int = _FEWEST,
    max_repeats: int = 20,
    together: bool = True,
    force: bool = False,
    start: StartEngine | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Measure two arms under the same prompts, arrivals and lengths until the ratio is known well.

    Repeat r draws the workload with seed + r for both; arms take turns in the order a b b a, so that
    a drift of the machine cancels. After `min_repeats` it stops as soon as half the interval of every
    metric is within `narrow` of its ratio. The interval is of the geometric mean of the repeats'
    ratios, by the bootstrap over repeats (requests of one run are no independent evidence), expanded
    for their small number. To stop when it is narrow costs little coverage: 90 % or more of nominal
    95 % intervals hold the truth with log-normal noise (tests/workbench/measure/test_compare.py).

    Finished repeats are kept in folder/<arm>-repeat<r>: the same call goes on after a crash.

    Args:    together: both engines run at the same time; else each is started in turn, for a GPU that
                 holds one.
             force: use runs that cannot be trusted, and say so in `doubts`.
             start: how vLLM is started; None is a server, offline for a closed loop.
    Raises:  MeasurementError: a repeat could not be trusted three times.
             InputError: arms of one name, or limits that cannot be.
    Source:  Hesterberg 2015, What Teachers Should Know About the Bootstrap, Am. Stat. 69(4): expanded
             percentile interval.
    """
    if a.name == b.name:
        raise InputError(f"both arms are named {a.name!r}", remedy="Name them apart.")
    if not 2 <= min_repeats <= max_repeats:
        raise InputError(
            f"min_repeats(={min_repeats}) must be >= 2 and <= max_repeats(={max_repeats})",
            remedy=f"Take {_FEWEST} to 20.",
        )
    closed = isinstance(workload.arrivals, ClosedLoop)
    mode: Mode = "offline" if closed and a.start is b.start is None else "server"
    doubts: list[str] = []
    found: dict[str, list[Measurement]] = {a.name: [], b.name: []}
    with _Engines(start or START[mode], folder, together=together) as engines:
        for r in range(max_repeats):
            progress = part(on_progress, r / max_repeats, (r + 1) / max_repeats)
            for arm in (a, b) if r % 2 == 0 else (b, a):
                load = workload.at(seed=workload.seed + r)
                name = f"{arm.name}-repeat{r}"
                point = Point(name, arm.variant, load, mode, arm.engine_args)
                found[arm.name].append(
                    _trusted(point, arm, engines, folder, force, doubts, progress)
                )
            rows = ratios(found[a.name], found[b.name], metrics, narrow)
            if r + 1 >= min_repeats and _is_narrow(rows, narrow):
                break
    if on_progress is not None:
        on_progress(f"{len(rows)} metrics after {r + 1} repeats", 1.0)
    result = Comparison(
        a.name, b.name, rows, _is_narrow(rows, narrow), tuple(dict.fromkeys(doubts))
    )
    result.write(folder / "comparison.json")
    return result


def ratios(
    a: Sequence[Measurement], b: Sequence[Measurement], metrics: Sequence[str], narrow: float
) -> pd.DataFrame:
    """One row per metric: medians, ratio b / a with its interval, and what it says in words."""
    of_a, of_b = (pd.DataFrame([m.summary() for m in side]) for side in (a, b))
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        if metric not in of_a:
            raise InputError(f"metric(={metric!r}) is not measured", remedy="See docs/METRICS.md.")
        logs = np.log(of_b[metric].to_numpy() / of_a[metric].to_numpy())
        ratio, low, high = interval(logs)
        rows.append(
            {
                "metric": metric,
                "a": float(of_a[metric].median()),
                "b": float(of_b[metric].median()),
                "ratio": ratio,
                "low": low,
                "high": high,
                "repeats": len(logs),
                "verdict": _verdict(low, high, narrow),
            }
        )
    return pd.DataFrame(rows)


def interval(logs: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Ratio and its 95 % interval from the logarithms of the repeats' ratios."""
    n = len(logs)
    if n < 2:
        return float(np.exp(logs.mean())), 0.0, float("inf")
    rng = np.random.default_rng(n)
    drawn = rng.choice(logs, (_RESAMPLES, n)).mean(axis=1)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - _LEVEL) / 2, n - 1))
    low, high = np.exp(np.quantile(drawn, [tail, 1 - tail]))
    return float(np.exp(logs.mean())), float(low), float(high)


def _verdict(low: float, high: float, narrow: float) -> str:
    if low > 1 or high < 1:
        return "b is higher" if low > 1 else "b is lower"
    if low >= 1 - narrow and high <= 1 + narrow:
        return f"no difference beyond {narrow:.0%}"
    return "undecided"


def _is_narrow(rows: pd.DataFrame, narrow: float) -> bool:
    return bool(((rows["high"] - rows["low"]) / 2 <= narrow * rows["ratio"]).all())


def _trusted(
    point: Point,
    arm: Arm,
    engines: _Engines,
    folder: Path,
    force: bool,
    doubts: list[str],
    on_progress: OnProgress | None,
) -> Measurement:
    measured = once(point, lambda: engines.of(arm), folder, on_progress=on_progress)
    if measured.invalid and not force:
        raise MeasurementError(
            f"{point.name} cannot be trusted: {'; '.join(measured.invalid)}",
            remedy="Mend the cause and call again, or force it.",
        )
    doubts += [f"{point.name}: {reason}" for reason in measured.invalid]
    return measured


class _Engines:
    """The engines of both arms, started when first needed; only one at a time unless together."""

    def __init__(self, start: StartEngine, folder: Path, *, together: bool) -> None:
        self._start = start
        self._folder = folder
        self._together = together
        self._running: dict[str, tuple[Engine, ExitStack]] = {}

    def __enter__(self) -> _Engines:
        return self

    def __exit__(self, *exc: object) -> None:
        for _, stack in self._running.values():
            stack.close()
        self._running.clear()

    def of(self, arm: Arm) -> Engine:
        if arm.name not in self._running:
            if not self._together:
                self.__exit__()
            stack = ExitStack()
            start = arm.start or self._start
            engine = enter(stack, arm.variant, arm.engine_args, start, self._folder / arm.name)
            self._running[arm.name] = engine, stack
        return self._running[arm.name][0]
