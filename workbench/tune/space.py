"""What is searched: typed ranges, and the Plan that a point in them stands for.

A point is a plain mapping of parameter names to values, so that a trial of the search, a rule of
practice and a row of the stored study all become a Plan by the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import Field, model_validator

from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    Behavior,
    HpaSpec,
    ScalingPolicy,
    ScalingRules,
    pods_metric,
    quantity,
)
from serving.plan import EngineArgs, Plan, Slo, Variant
from serving.values import Value
from simulations.latency import LatencyModel

Point = Mapping[str, Any]
TUNED = "tuned"
_JOIN = " + "
_MARGIN = 0.1
_SCALE_UP_PERIOD_S = 15
_SCALE_DOWN_PERIOD_S = 60


class Candidate(Value):
    """A variant that may be served, and how fast it is."""

    variant: Variant
    latency: LatencyModel

    @model_validator(mode="after")
    def _belong_together(self) -> Candidate:
        if self.latency.variant != self.variant.name:
            raise ValueError(
                f"latency is of {self.latency.variant!r}, not of {self.variant.name!r}"
            )
        return self


class TargetRange(Value):
    """Where a metric may be held, searched on a logarithmic scale."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    of_max_num_seqs: bool = False
    """The range is in shares of the engine's max_num_seqs."""

    @model_validator(mode="after")
    def _ordered(self) -> TargetRange:
        if self.low > self.high:
            raise ValueError(f"low(={self.low}) must be <= high(={self.high})")
        return self


TARGETS: Mapping[str, TargetRange] = {
    REQUESTS_RUNNING: TargetRange(low=0.02, high=1.0, of_max_num_seqs=True),
    REQUESTS_WAITING: TargetRange(low=0.05, high=20),
    KV_CACHE_USAGE: TargetRange(low=0.01, high=0.9),
    GPU_UTILISATION: TargetRange(low=5, high=98),
    TTFT_MEAN: TargetRange(low=0.01, high=2),
}


class SearchSpace(Value):
    """The choices of the search. Where several metrics are named together, the HPA follows the
    one that asks for most replicas. None: taken from the workload's peak and the engine."""

    metrics: tuple[tuple[str, ...], ...] = (
        (REQUESTS_RUNNING,),
        (REQUESTS_WAITING,),
        (KV_CACHE_USAGE,),
        (GPU_UTILISATION,),
        (TTFT_MEAN,),
        (GPU_UTILISATION, TTFT_MEAN),
    )
    targets: dict[str, TargetRange] = Field(default_factory=lambda: dict(TARGETS))
    min_replicas: tuple[int, int] | None = None
    """None: 1 to the peak's need and a margin."""
    max_replicas: tuple[int, int] | None = None
    """None: the peak's need to twice that with its margin."""
    warm_spares: tuple[int, ...] = (0, 1, 2)
    scale_up_window_s: tuple[int, ...] = (0, 15, 30, 60)
    scale_up_pods: tuple[int, ...] = (1, 2, 4, 8)
    """Most pods added in 15 s."""
    scale_down_window_s: tuple[int, ...] = (0, 60, 120, 300, 600)
    scale_down_percent: tuple[int, ...] = (10, 25, 50, 100)
    """Largest share of the pods removed in a minute."""
    tolerance: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    max_num_seqs: tuple[int, ...] | None = None
    """Only those within the fitted range are used. None: the engine's own, a half and a quarter."""

    @model_validator(mode="after")
    def _complete(self) -> SearchSpace:
        for names in self.metrics:
            unknown = [name for name in names if name not in self.targets]
            if unknown or not names:
                raise ValueError(f"metrics(={names}) must have a range in targets each")
        for name, choices in self:
            if isinstance(choices, tuple) and not choices:
                raise ValueError(f"{name}(=()) must not be empty")
        for name in ("min_replicas", "max_replicas"):
            bounds = getattr(self, name)
            if bounds is not None and not 1 <= bounds[0] <= bounds[1]:
                raise ValueError(f"{name}(={bounds}) must be two numbers, 1 <= low <= high")
        return self

    def sized(self, peak_replicas: int) -> SearchSpace:
        """The same with the replica ranges of a peak, which perfectly spread requests would need.

        A fleet that is always there needs some more, and one that scales may overshoot: both are
        in the ranges.
        """
        always = peak_replicas + 2 * max(1, round(_MARGIN * peak_replicas))
        return self.model_copy(
            update={
                "min_replicas": self.min_replicas or (1, always),
                "max_replicas": self.max_replicas or (peak_replicas, 2 * always),
            }
        )

    def seqs_choices(self, engine: EngineArgs, most: int) -> tuple[int, ...]:
        """Values of max_num_seqs that may be simulated, the largest first."""
        largest = min(engine.max_num_seqs, most)
        choices = self.max_num_seqs or (largest, largest // 2, largest // 4)
        fit = {n for n in choices if 1 <= n <= min(most, engine.max_num_batched_tokens)}
        return tuple(sorted(fit, reverse=True))


class Suggester(Protocol):
    """The part of an Optuna trial that is used."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...


def seqs_name(variant: str) -> str:
    """A parameter per variant: their fitted ranges differ, and a parameter's choices may not."""
    return f"max_num_seqs of {variant}"


def target_name(metric: str) -> str:
    """A parameter per metric: their units differ."""
    return f"target of {metric}"


def draw(trial: Suggester, space: SearchSpace, seqs: Mapping[str, tuple[int, ...]]) -> Point:
    """Let a trial choose a point.

    Args:    space: with its replica ranges set (`sized`).
             seqs: choices of max_num_seqs by variant.
    """
    assert space.min_replicas is not None
    assert space.max_replicas is not None
    point: dict[str, Any] = {}

    def choose(name: str, choices: tuple[Any, ...]) -> Any:
        point[name] = trial.suggest_categorical(name, choices)
        return point[name]

    variant = choose("variant", tuple(seqs))
    choose(seqs_name(variant), seqs[variant])
    chosen = choose("metrics", tuple(_JOIN.join(names) for names in space.metrics))
    for metric in chosen.split(_JOIN):
        bounds = space.targets[metric]
        name = target_name(metric)
        point[name] = trial.suggest_float(name, bounds.low, bounds.high, log=True)
    for name in ("min_replicas", "max_replicas"):
        point[name] = trial.suggest_int(name, *getattr(space, name))
    for name in (
        "warm_spares",
        "scale_up_window_s",
        "scale_up_pods",
        "scale_down_window_s",
        "scale_down_percent",
        "tolerance",
    ):
        choose(name, getattr(space, name))
    return point


def hpa_of(point: Point, space: SearchSpace, max_num_seqs: int) -> HpaSpec:
    """The autoscaler that a point stands for."""
    metrics = []
    for name in point["metrics"].split(_JOIN):
        unit = max_num_seqs if space.targets[name].of_max_num_seqs else 1
        # The HPA reads thousandths and refuses 0.
        metrics.append(pods_metric(name, max(0.001, round(point[target_name(name)] * unit, 3))))
    tolerance = quantity(point["tolerance"])
    return HpaSpec(
        min_replicas=min(point["min_replicas"], point["max_replicas"]),
        max_replicas=point["max_replicas"],
        metrics=tuple(metrics),
        behavior=Behavior(
            scale_up=ScalingRules(
                stabilization_window_seconds=point["scale_up_window_s"],
                policies=(
                    ScalingPolicy(
                        type="Pods",
                        value=point["scale_up_pods"],
                        period_seconds=_SCALE_UP_PERIOD_S,
                    ),
                ),
                tolerance=tolerance,
            ),
            scale_down=ScalingRules(
                stabilization_window_seconds=point["scale_down_window_s"],
                policies=(
                    ScalingPolicy(
                        type="Percent",
                        value=point["scale_down_percent"],
                        period_seconds=_SCALE_DOWN_PERIOD_S,
                    ),
                ),
                tolerance=tolerance,
            ),
        ),
    )


class Ground(Value):
    """What all trials of a search share."""

    candidates: tuple[Candidate, ...]
    engine: EngineArgs
    slo: Slo
    space: SearchSpace
    gpu_usd_per_hour: float
    gpus_per_replica: int

    @property
    def most_replicas(self) -> int:
        assert self.space.max_replicas is not None
        return self.space.max_replicas[1]

    def candidate(self, variant: str) -> Candidate:
        return next(c for c in self.candidates if c.variant.name == variant)

    def plan(self, variant: str, max_num_seqs: int, **fields: Any) -> Plan:
        """A Plan on this ground."""
        engine = self.engine.model_dump() | {"max_num_seqs": max_num_seqs}
        return Plan(
            variant=self.candidate(variant).variant,
            engine=EngineArgs.model_validate(engine),
            slo=self.slo,
            gpu_usd_per_hour=self.gpu_usd_per_hour,
            gpus_per_replica=self.gpus_per_replica,
            **fields,
        )

    def plan_of(self, point: Point, name: str = TUNED) -> Plan:
        """The Plan that a point stands for."""
        variant = point["variant"]
        seqs = point[seqs_name(variant)]
        hpa = hpa_of(point, self.space, seqs)
        return self.plan(variant, seqs, name=name, hpa=hpa, warm_spares=point["warm_spares"])
