"""Capacity under an SLO: the highest rate at which the promise is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from serving.errors import InfeasibleError, InputError, MeasurementError
from serving.plan import EngineArgs, Slo, Variant
from serving.values import shown_html
from simulations.traffic import Gamma, Poisson, Workload
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.measurement import Measurement
from workbench.measure.points import Point, StartEngine, enter, once, start_server
from workbench.measure.validity import ABOUT_THE_SERVER, MIN_REQUESTS

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS = 10
_RUNS_PER_RATE = 6
_OUTWARD = 1.25
_FROM_SCHEDULE = {"ttft_p99_s": "ttft_from_schedule_s", "e2e_p99_s": "e2e_from_schedule_s"}


@dataclass(frozen=True)
class Capacity:
    """The highest rate that keeps the SLO.

    Attributes:
        rate_rps: highest rate at which the measured attainment is enough.
        low_rps: highest rate that keeps it with confidence; 0 if none was shown to.
        high_rps: lowest rate that breaks it with confidence; inf if none was shown to.
        runs: one row per run: rate_rps, seed, requests, attainment (of the run), low, high (of all
            runs at that rate so far), verdict.
    """

    rate_rps: float
    low_rps: float
    high_rps: float
    attainment: float
    confidence: float
    runs: pd.DataFrame
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        high = "?" if self.high_rps == inf else f"{self.high_rps:.3g}"
        low = f"{self.low_rps:.3g}" if self.low_rps else "?"
        return (
            f"{self.rate_rps:.3g} requests/s keep the SLO for {self.attainment:.4g} of the requests"
            f" ({self.confidence:.0%} interval {low} to {high})"
        )

    def text(self) -> str:
        """As JSON; an unknown bound is null."""
        rows = self.runs.to_dict("records")
        high = None if self.high_rps == inf else self.high_rps
        said = {**asdict(self), "high_rps": high, "runs": rows, "doubts": list(self.doubts)}
        return json.dumps(said, indent=2) + "\n"

    def write(self, path: Path) -> Path:
        """Write as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text())
        return path

    @classmethod
    def read(cls, path: Path) -> Capacity:
        """Read what `write` wrote."""
        said = json.loads(path.read_text())
        said["high_rps"] = inf if said["high_rps"] is None else said["high_rps"]
        runs, doubts = pd.DataFrame(said.pop("runs")), tuple(said.pop("doubts"))
        return cls(**said, runs=runs, doubts=doubts)

    def _repr_html_(self) -> str:
        return shown_html(str(self), self.runs, doubts=self.doubts)

    def plot(self) -> go.Figure:
        """Share of requests within the SLO by rate, and what is asked."""
        from workbench.report.value_figures import attainment_by_rate

        return attainment_by_rate(self)


@dataclass
class _Rate:
    """What is known of one rate: of each block of each run, how many requests were good."""

    good: list[int] = field(default_factory=list)
    of: list[int] = field(default_factory=list)
    verdict: str = "undecided"

    @property
    def attainment(self) -> float:
        return sum(self.good) / sum(self.of)


def capacity(
    variant: Variant,
    workload: Workload,
    slo: Slo,
    *,
    engine_args: EngineArgs,
    folder: Path,
    start_rps: float = 1.0,
    precision: float = 0.05,
    attainment: float = 0.99,
    confidence: float = 0.95,
    max_runs: int = 60,
    force: bool = False,
    start: StartEngine = start_server,
    on_progress: OnProgress | None = None,
) -> Capacity:
    """Bisect for the highest rate at which `attainment` of all requests meet every limit of the SLO.

    The workload's lengths arrive as a Poisson process (Gamma keeps its burstiness) for its duration.
    Each limit binds each request: TTFT and E2E from the scheduled time, TPOT of answers of several
    tokens; a failed request is a miss. At each rate runs with new seeds are added until the interval
    of the attainment excludes the target, six at most. Requests of one run share their queue, so the
    interval is Wilson's with as many requests as they are worth: n over the design effect, the
    variance of blocks of consecutive requests over that of independent ones. A rate that stays
    undecided steers the search by its point estimate and leaves the reported interval wide.

    Runs are kept in folder/rate<rate>-run<k>: the same call goes on after a crash.

    Args:    start_rps: where to begin; doubled or halved until the capacity is bracketed.
             precision: stop when the bracket's ends differ by less than this share.
             force: use runs that a late client or the like makes doubtful, and say so.
    Raises:  InfeasibleError: the SLO is broken at every rate at which the workload has 20 requests.
             MeasurementError: max_runs were not enough for a bracket, or runs that cannot be trusted.
    """
    if not 0 < attainment < 1 or not 0 < confidence < 1 or precision <= 0 or start_rps <= 0:
        raise InputError(
            f"attainment(={attainment}), confidence(={confidence}) must be within 0 and 1,"
            f" precision(={precision}) and start_rps(={start_rps}) > 0",
            remedy="Take 0.99, 0.95, 0.05 and a rate that the server surely manages.",
        )
    load_s = workload.duration_s - workload.warmup_s
    search = _Search(attainment, confidence, precision, start_rps, MIN_REQUESTS / load_s)
    doubts: list[str] = []
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        engine = lazily(stack, variant, engine_args, start, folder)
        while (rate_rps := search.next_rps()) is not None and len(rows) < max_runs:
            known = search.rates.setdefault(rate_rps, _Rate())
            k = sum(row["rate_rps"] == rate_rps for row in rows)
            load = workload.at(arrivals=_at(workload, rate_rps), seed=workload.seed + k)
            point = Point(f"rate{rate_rps:.6g}-run{k}", variant, load, "server", engine_args)
            measured = once(point, engine, folder, usable=_usable)
            if not _usable(measured):
                doubts += _forced(measured, force)
            met = meets(measured, slo)
            known.good += [int(block.sum()) for block in np.array_split(met, _BLOCKS)]
            known.of += [len(block) for block in np.array_split(met, _BLOCKS)]
            low, high = search.judge(rate_rps)
            rows.append(
                {
                    "rate_rps": rate_rps,
                    "seed": load.seed,
                    "requests": len(met),
                    "attainment": float(met.mean()),
                    "low": low,
                    "high": high,
                    "verdict": known.verdict,
                }
            )
            if on_progress is not None:
                done = min(0.99, len(rows) / max_runs)
                on_progress(f"{rate_rps:.3g} requests/s: {met.mean():.1%} good", done)
    result = search.result(pd.DataFrame(rows), tuple(doubts))
    result.write(folder / "capacity.json")
    return result


class _Search:
    """Bisection on the logarithm of the rate, over rates whose verdict may stay open."""

    def __init__(
        self,
        attainment: float,
        confidence: float,
        precision: float,
        start_rps: float,
        lowest_rps: float,
    ) -> None:
        self._attainment = attainment
        self._confidence = confidence
        self._precision = precision
        self._start_rps = start_rps
        self._lowest_rps = lowest_rps
        self.rates: dict[float, _Rate] = {}

    def next_rps(self) -> float | None:
        """The rate to measure next; None when the bracket is narrow enough.

        Raises:  InfeasibleError: nothing keeps the SLO.
        """
        for rate_rps, known in self.rates.items():
            if known.verdict == "undecided" and len(known.of) < _RUNS_PER_RATE * _BLOCKS:
                return rate_rps
        low_rps, high_rps = self._bracket()
        if not self.rates:
            return self._start_rps
        if low_rps == 0:
            if high_rps / 2 < self._lowest_rps:
                raise InfeasibleError(
                    f"the SLO is broken even at {high_rps:.3g} requests a second",
                    remedy="Loosen its limits, shorten the requests, or measure for longer.",
                )
            return high_rps / 2
        if high_rps == inf:
            return low_rps * 2
        if high_rps / low_rps > 1 + self._precision:
            return sqrt(low_rps * high_rps)
        # The bracket's ends may be open questions themselves: look further out for sure ones.
        verdicts = {known.verdict for known in self.rates.values()}
        if "breaks" not in verdicts:
            return max(self.rates) * _OUTWARD
        if "keeps" not in verdicts and min(self.rates) / _OUTWARD >= self._lowest_rps:
            return min(self.rates) / _OUTWARD
        return None

    def judge(self, rate_rps: float) -> tuple[float, float]:
        """Set the verdict of a rate; the interval of its attainment."""
        known = self.rates[rate_rps]
        low, high = attained(known.good, known.of, self._confidence)
        if low >= self._attainment:
            known.verdict = "keeps"
        elif high < self._attainment:
            known.verdict = "breaks"
        return low, high

    def _holds(self, known: _Rate) -> bool:
        if known.verdict == "undecided":
            return known.attainment >= self._attainment
        return known.verdict == "keeps"

    def _bracket(self) -> tuple[float, float]:
        broken = [rate for rate, known in self.rates.items() if not self._holds(known)]
        high_rps = min(broken, default=inf)
        kept = [r for r, known in self.rates.items() if self._holds(known) and r < high_rps]
        return max(kept, default=0.0), high_rps

    def result(self, runs: pd.DataFrame, doubts: tuple[str, ...]) -> Capacity:
        low_rps, _ = self._bracket()
        if low_rps == 0:
            raise MeasurementError(
                f"{len(runs)} runs found no rate that keeps the SLO",
                remedy="Raise max_runs, or lower start_rps.",
            )
        sure = {
            verdict: [rate for rate, known in self.rates.items() if known.verdict == verdict]
            for verdict in ("keeps", "breaks")
        }
        breaks = min(sure["breaks"], default=inf)
        return Capacity(
            rate_rps=low_rps,
            low_rps=max((rate for rate in sure["keeps"] if rate < breaks), default=0.0),
            high_rps=breaks,
            attainment=self._attainment,
            confidence=self._confidence,
            runs=runs,
            doubts=doubts,
        )


def meets(measured: Measurement, slo: Slo) -> npt.NDArray[np.bool_]:
    """Of each counted request, in order of its schedule, whether it met every limit."""
    counted = measured.requests[measured.requests["counted"]].sort_values("scheduled_s")
    done = measured.latencies().set_index("request_id")
    good = pd.Series(counted["error"].isna().to_numpy(), index=counted["request_id"])
    for name, limit in slo.limits().items():
        column = _FROM_SCHEDULE.get(name, name.replace("_p99", ""))
        good &= done[column].fillna(0.0).reindex(good.index, fill_value=inf) <= limit
    return good.to_numpy(dtype=bool)


def attained(good: list[int], of: list[int], confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, from blocks of requests that are alike within a block.

    Source:  Wilson 1927; design effect: Kish 1965, Survey Sampling, ch. 5.
    """
    counts, sizes = np.array(good, dtype=float), np.array(of, dtype=float)
    sizes, counts = sizes[sizes > 0], counts[sizes > 0]
    n, share = sizes.sum(), counts.sum() / sizes.sum()
    effect = 1.0
    if 0 < share < 1 and len(sizes) > 1:
        between = ((counts - sizes * share) ** 2).sum() / (len(sizes) - 1)
        effect = max(1.0, between / (sizes.mean() * share * (1 - share)))
    worth = n / effect
    z = stats.norm.ppf((1 + confidence) / 2)
    middle = (share + z**2 / (2 * worth)) / (1 + z**2 / worth)
    half = z * np.sqrt(share * (1 - share) / worth + z**2 / (4 * worth**2)) / (1 + z**2 / worth)
    return float(middle - half), float(middle + half)


def _at(workload: Workload, rate_rps: float) -> Poisson | Gamma:
    if isinstance(workload.arrivals, Gamma):
        return Gamma(rate_rps=rate_rps, burstiness=workload.arrivals.burstiness)
    return Poisson(rate_rps=rate_rps)


def _usable(measured: Measurement) -> bool:
    """A server that falls behind is evidence; a client that does is none."""
    return all(any(mark in reason for mark in ABOUT_THE_SERVER) for reason in measured.invalid)


def _forced(measured: Measurement, force: bool) -> list[str]:
    reasons = [f"{measured.name}: {reason}" for reason in measured.invalid]
    if not force:
        raise MeasurementError(
            f"a run cannot be trusted: {reasons[0]}",
            remedy="Mend the cause and call again, or force it.",
        )
    return reasons


def lazily(
    stack: ExitStack, variant: Variant, engine_args: EngineArgs, start: StartEngine, folder: Path
) -> Callable[[], Engine]:
    """The engine, started when it is first asked for."""
    running: list[Engine] = []

    def engine() -> Engine:
        if not running:
            running.append(enter(stack, variant, engine_args, start, folder))
        return running[0]

    return engine
