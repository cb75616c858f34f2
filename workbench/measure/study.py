"""A study: a question, and the grid of points that answers it, declared as data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import nan, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from pydantic import Field, ValidationError, model_validator
from scipy import stats

from serving.errors import InputError
from serving.plan import EngineArgs, Variant
from serving.values import Estimate, Value, one_line, shown_html
from simulations.traffic import Fixed, Lengths, Poisson, SharedPrefix, Workload
from workbench.measure.engine import OnProgress
from workbench.measure.measurement import Measurement, Mode, frame
from workbench.measure.points import START, Failure, Point, StartEngine
from workbench.measure.prompts import requests_for
from workbench.measure.roofline import Ceilings
from workbench.measure.spread import Group, Where, spread
from workbench.measure.sweeps import batch_load

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Study(Value):
    """A question and its grid: every combination of engine arguments, lengths and loads.

    Combinations that vLLM itself refuses (a token budget below max_num_seqs, or below the context
    without chunked prefill; requests longer than the context) are left out.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    question: str
    mode: Mode = "offline"
    engine: EngineArgs = EngineArgs()
    """What all points share."""
    engine_grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Field of EngineArgs -> its values; each combination is an engine of its own."""
    lengths: tuple[tuple[int, int], ...] = ((128, 128),)
    """(prompt tokens, output tokens)."""
    shared_prefix_tokens: tuple[int, ...] = (0,)
    """So many tokens before every prompt, the same in all: what a prefix cache can give."""
    concurrency: tuple[int, ...] = ()
    """Closed loops of so many users."""
    rates_rps: tuple[float, ...] = ()
    """Open Poisson loops, in server mode."""
    duration_s: float = Field(60.0, gt=0)
    warmup_s: float = Field(5.0, ge=0)
    least_requests: int = Field(0, ge=0)
    """A slow load goes on beyond duration_s until so many are counted in the mean, a closed loop until
    so many are sent."""
    repeats: int = Field(1, ge=1)
    take_turns: bool = False
    """Variants take turns: each repeat of a variant gets an engine of its own, so that a slow spell of
    the machine falls on all variants and ratios between them stay what they are."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _has_points(self) -> Study:
        unknown = sorted(set(self.engine_grid) - set(EngineArgs.model_fields))
        if unknown:
            raise ValueError(f"engine_grid(={unknown}) must name fields of EngineArgs")
        if not self.concurrency and not self.rates_rps:
            raise ValueError("at least one of concurrency and rates_rps must be set")
        if not self.shared_prefix_tokens or min(self.shared_prefix_tokens) < 0:
            raise ValueError(
                f"shared_prefix_tokens(={self.shared_prefix_tokens}) must be one or more, each >= 0"
            )
        if self.rates_rps and self.mode == "offline":
            raise ValueError(f"rates_rps(={self.rates_rps}) must go with mode 'server'")
        return self

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a study from YAML or JSON.

        Raises:  InputError: no such file, or not a study.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({error.strerror})", remedy="Check the path."
            ) from error
        except (ValidationError, yaml.YAMLError) as error:
            said = one_line(error) if isinstance(error, ValidationError) else str(error)
            raise InputError(
                f"{path} is not a study: {said}", remedy="See experiments/batching.yaml."
            ) from error

    @property
    def varied(self) -> list[str]:
        """What tells points of the same lengths and load apart: fields of EngineArgs, and the prefix."""
        shared = ["shared_prefix_tokens"] if any(self.shared_prefix_tokens) else []
        return [*self.engine_grid, *shared]

    def engines(self) -> list[tuple[str, EngineArgs]]:
        """(what is varied, as text for names; the arguments) of each combination."""
        found = []
        for values in product(*self.engine_grid.values()):
            chosen = dict(zip(self.engine_grid, values, strict=True))
            label = "".join(f"-{_short(name)}{value}" for name, value in chosen.items())
            try:
                found.append((label, EngineArgs(**(self.engine.model_dump() | chosen))))
            except ValidationError:
                continue  # vLLM refuses it as well
        return found

    def points(self, variants: Sequence[Variant]) -> list[list[Point]]:
        """Points by engine. Repeats are interleaved, so that a slow spell falls on all alike."""
        every = range(self.repeats)
        turns = [(repeat,) for repeat in every] if self.take_turns else [tuple(every)]
        groups = []
        for turn, variant, (label, engine) in product(turns, variants, self.engines()):
            lengths = [
                (shared, *pair)
                for shared in self.shared_prefix_tokens
                for pair in self.lengths
                if shared + sum(pair) <= engine.max_model_len
            ]
            groups.append(
                [
                    Point(f"{variant.name}{label}-{load}", variant, workload, self.mode, engine)
                    for repeat in turn
                    for tokens in lengths
                    for load, workload in self._loads(*tokens, repeat)
                ]
            )
        return [group for group in groups if group]

    def _loads(
        self, shared: int, prompt: int, output: int, repeat: int
    ) -> Iterator[tuple[str, Workload]]:
        lengths = f"{shared}+{prompt}x{output}" if shared else f"{prompt}x{output}"
        prefix = SharedPrefix(tokens=Fixed(tokens=shared)) if shared else None
        for users in self.concurrency:
            load = batch_load(users, prompt, output, self.seed + repeat, self.least_requests)
            yield f"{lengths}-batch{users}-repeat{repeat}", load.at(shared_prefix=prefix)
        for rate_rps in self.rates_rps:
            least_s = self.warmup_s + self.least_requests / rate_rps
            load = Workload(
                arrivals=Poisson(rate_rps=rate_rps),
                prompt_tokens=Fixed(tokens=prompt),
                output_tokens=Fixed(tokens=output),
                shared_prefix=prefix,
                duration_s=max(self.duration_s, round(least_s, 3)),
                warmup_s=self.warmup_s,
                seed=self.seed + repeat,
            )
            yield f"{lengths}-rate{rate_rps:g}-repeat{repeat}", load


@dataclass(frozen=True)
class StudyResult:
    """What a study found: points in the order of the grid, and those that could not be measured."""

    study: Study
    measurements: list[Measurement]
    failures: list[Failure]

    def frame(
        self, ceilings: Ceilings | None = None, usd_per_hour: float | None = None
    ) -> pd.DataFrame:
        """`frame` of the points, with prompt_tokens, output_tokens, repeat and what is varied."""
        table = frame(self.measurements, ceilings=ceilings, usd_per_hour=usd_per_hour)
        table.insert(
            3, "prompt_tokens", [_tokens(m.workload.prompt_tokens) for m in self.measurements]
        )
        table.insert(
            4, "output_tokens", [_tokens(m.workload.output_tokens) for m in self.measurements]
        )
        table.insert(5, "repeat", [m.workload.seed - self.study.seed for m in self.measurements])
        for at, name in enumerate(self.study.varied):
            values = [_value(m, name) for m in self.measurements]
            table.insert(6 + at, name, pd.Series(values, dtype=object))
        return table

    def _repr_html_(self) -> str:
        doubted = sum(bool(m.invalid) for m in self.measurements)
        said = f"{len(self.measurements)} points, {doubted} of them not to be trusted"
        failed = [f"failed: {one.name}, {one.cause}" for one in self.failures]
        return shown_html(f"{self.study.question} {said}", self.frame(), notes=failed)

    def plot(self) -> list[go.Figure]:
        """Throughput and time per token by batch, latencies by rate: what was varied."""
        from workbench.report.study_figures import study_figures

        return study_figures(self)

    def gains(
        self, concurrency: int, over: int, metric: str = "output_tokens_per_s"
    ) -> pd.DataFrame:
        """How many times the metric one concurrency gives over another, by lengths and what is varied.

        Of each repeat the ratio, then the geometric mean over repeats; the 95 % interval is Student's t
        on their logarithms, NaN where there is one repeat. Points that cannot be trusted are left out.

        Returns: columns variant, prompt_tokens, output_tokens, what is varied, gain, low, high,
                 repeats; empty where neither was measured.
        """
        table = self.frame()
        varied = self.study.varied
        keys = ["variant", "prompt_tokens", "output_tokens", *varied]
        table = table[table["valid"]].astype(dict.fromkeys(varied, str))
        sides = [
            table[table["batch"] == users].set_index([*keys, "repeat"])[metric]
            for users in (concurrency, over)
        ]
        ratios = (sides[0] / sides[1]).dropna()
        rows = []
        for at, of_repeats in ratios.groupby(keys, sort=False):
            gain = ratio_over_repeats(of_repeats)
            named = dict(zip(keys, list(at), strict=True))
            bounds = {"gain": gain.value, "low": gain.low, "high": gain.high}
            rows.append({**named, **bounds, "repeats": gain.n})
        return pd.DataFrame(rows, columns=[*keys, "gain", "low", "high", "repeats"])


def ratio_over_repeats(ratios: Iterable[float]) -> Estimate:
    """Geometric mean of the ratio of each repeat; the 95 % interval is Student's t on logarithms.

    Of one repeat the interval is NaN.
    """
    logs = np.log(np.fromiter(ratios, float))
    n, mean = len(logs), float(logs.mean())
    half = nan if n < 2 else float(stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / sqrt(n))
    value, low, high = np.exp([mean, mean - half, mean + half]).tolist()
    return Estimate(value=value, low=low, high=high, n=n)


def run_study(
    study: Study,
    variants: Sequence[Variant],
    *,
    folder: Path,
    where: Where | None = None,
    retry_failed: bool = False,
    on_progress: OnProgress | None = None,
    start: StartEngine | None = None,
) -> StudyResult:
    """Measure what is not there yet, each point kept in folder/<point> as soon as it is done.

    Engines run on all GPUs of this host, or of a Ray cluster, each on as many as it needs; without a
    GPU one after the other. A point whose engine died is a failure with the cause from its log, kept
    as well; the others go on.

    Args:    where: None is this host.
             retry_failed: measure points again that failed before.
    Raises:  InputError: no point fits its engine.
    """
    groups = study.points(variants)
    if not groups:
        raise InputError(
            f"study(={study.name!r}) has no point that its engines can hold",
            remedy="Raise max_model_len, or shorten lengths.",
        )
    study.write(folder / "study.json")
    found: dict[str, Measurement | Failure] = {}
    missing: list[Group] = []
    for points in groups:
        left = []
        for point in points:
            there = point.finished(folder)
            known = there or (None if retry_failed else point.failed(folder))
            if known is None:
                left.append(point)
            else:
                found[point.name] = known
        for point in left:
            requests_for(point.variant, point.workload, point.engine_args)
        if left:
            missing.append(Group(tuple(left)))
    begin = start or START[study.mode]
    for result in spread(missing, begin, folder, where or Where(), on_progress):
        found[result.name] = result
    if on_progress is not None:
        on_progress(f"{len(found)} points", 1.0)
    order = [found[point.name] for points in groups for point in points if point.name in found]
    return StudyResult(
        study=study,
        measurements=[one for one in order if isinstance(one, Measurement)],
        failures=[one for one in order if isinstance(one, Failure)],
    )


def read_study(folder: Path) -> StudyResult:
    """What `run_study` left in a folder, finished or not.

    Raises:  InputError: no study lies there.
    """
    study = Study.read(folder / "study.json")
    heads = sorted(folder.glob("*/measurement.json"), key=lambda path: path.stat().st_mtime)
    return StudyResult(
        study=study,
        measurements=[Measurement.read(path.parent) for path in heads],
        failures=[Failure.read(path) for path in sorted(folder.glob("*/failed.json"))],
    )


def _value(measured: Measurement, name: str) -> object:
    if name == "shared_prefix_tokens":
        shared = measured.workload.shared_prefix
        return int(_tokens(shared.tokens)) if shared else 0
    return getattr(measured.engine, name)


def _tokens(lengths: Lengths | None) -> float:
    """A study's lengths are fixed; NaN for any other law."""
    return lengths.tokens if isinstance(lengths, Fixed) else nan


def _short(field: str) -> str:
    """max_num_batched_tokens -> mnbt: names of points have to stay readable."""
    return "".join(word[0] for word in field.split("_"))
