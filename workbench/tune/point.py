"""A point of the search space, and the Plan that it stands for.

A point is a plain mapping of names to values, so that a trial of the search, a rule of practice and
a row of the stored study all become a Plan by the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from serving.gateway.spec import GatewaySpec, ResultCache
from serving.hpa import Behavior, HpaSpec, ScalingPolicy, ScalingRules, quantity
from serving.plan import EngineArgs, Plan, Slo
from serving.values import Value
from workbench.tune.candidate import Candidate
from workbench.tune.space import SearchSpace

Point = Mapping[str, Any]
TUNED = "tuned"
JOIN = " + "
ORDERED = (
    "max_num_batched_tokens",
    "enable_prefix_caching",
    "result_cache_size",
    "warm_spares",
    "scale_up_window_s",
    "scale_up_pods",
    "scale_up_percent",
    "scale_up_period_s",
    "scale_up_tolerance",
    "scale_down_window_s",
    "scale_down_pods",
    "scale_down_percent",
    "scale_down_period_s",
    "scale_down_tolerance",
)
"""Choices of the space that have an order."""


class Suggester(Protocol):
    """The part of an Optuna trial that is used."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...


def seqs_name(variant: str) -> str:
    """A parameter per variant: their fitted ranges differ, and a parameter's choices may not."""
    return f"max_num_seqs of {variant}"


def position_name(choice: str) -> str:
    """Ordered choices are drawn by their position, so that the search knows which are near."""
    return f"position of {choice}"


def target_name(metric: str) -> str:
    """A parameter per metric: their units differ."""
    return f"target of {metric}"


def draw(trial: Suggester, space: SearchSpace, seqs: Mapping[str, tuple[int, ...]]) -> Point:
    """Let a trial choose a point; what is fixed is not asked of it.

    Args:    space: with its replica ranges set (`sized`).
             seqs: choices of max_num_seqs by variant.
    """
    assert space.min_replicas is not None
    assert space.max_replicas is not None
    point: dict[str, Any] = {}

    def position(name: str, choices: tuple[Any, ...]) -> None:
        chosen = 0
        if len(choices) > 1:
            chosen = trial.suggest_int(position_name(name), 0, len(choices) - 1)
        point[name] = choices[chosen]

    def one_of(name: str, choices: tuple[Any, ...]) -> Any:
        several = len(choices) > 1
        point[name] = trial.suggest_categorical(name, choices) if several else choices[0]
        return point[name]

    variant = one_of("variant", tuple(seqs))
    position(seqs_name(variant), seqs[variant])
    metrics = one_of("metrics", tuple(JOIN.join(names) for names in space.metrics))
    for metric in metrics.split(JOIN):
        bounds, name = space.targets[metric], target_name(metric)
        several = bounds.low < bounds.high
        point[name] = bounds.low
        if several:
            point[name] = trial.suggest_float(name, bounds.low, bounds.high, log=True)
    zero = one_of("scale_to_zero", space.zero_choices(one_of("source", space.sources)))
    for name in ("min_replicas", "max_replicas"):
        low, high = (0, 0) if zero and name == "min_replicas" else getattr(space, name)
        point[name] = trial.suggest_int(name, low, high) if low < high else low
    for name in ORDERED:
        position(name, getattr(space, name))
    return point


def parameters(
    point: Point, space: SearchSpace, seqs: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What a trial must be told so that `draw` gives this point."""
    choices = {name: getattr(space, name) for name in ORDERED}
    choices[seqs_name(point["variant"])] = seqs[point["variant"]]
    return {
        (position_name(name) if name in choices else name): (
            choices[name].index(value) if name in choices else value
        )
        for name, value in point.items()
    }


def hpa_of(point: Point, space: SearchSpace, max_num_seqs: int) -> HpaSpec:
    """The autoscaler that a point stands for."""
    metrics = tuple(
        space.targets[name].metric(name, point[target_name(name)], point["source"], max_num_seqs)
        for name in point["metrics"].split(JOIN)
    )
    return HpaSpec(
        min_replicas=min(point["min_replicas"], point["max_replicas"]),
        max_replicas=point["max_replicas"],
        metrics=metrics,
        behavior=Behavior(scale_up=_rules(point, "up"), scale_down=_rules(point, "down")),
    )


def _rules(point: Point, way: str) -> ScalingRules:
    """One direction of the autoscaler's behaviour."""
    policies = [
        ScalingPolicy(type=kind, value=value, period_seconds=point[f"scale_{way}_period_s"])
        for kind in ("Pods", "Percent")
        if (value := point[f"scale_{way}_{kind.lower()}"]) > 0
    ]
    return ScalingRules(
        stabilization_window_seconds=point[f"scale_{way}_window_s"],
        policies=tuple(policies),
        tolerance=quantity(point[f"scale_{way}_tolerance"]),
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

    def plan_of(self, point: Point, name: str = TUNED) -> Plan:
        """The Plan that a point stands for."""
        variant = point["variant"]
        seqs = point[seqs_name(variant)]
        engine = {name: point[name] for name in ("max_num_batched_tokens", "enable_prefix_caching")}
        answers = point["result_cache_size"]
        cache = ResultCache(size=answers) if answers else None
        return Plan(
            name=name,
            variant=self.candidate(variant).variant,
            engine=EngineArgs.model_validate(
                self.engine.model_dump() | engine | {"max_num_seqs": seqs}
            ),
            slo=self.slo,
            hpa=hpa_of(point, self.space, seqs),
            warm_spares=point["warm_spares"],
            gateway=GatewaySpec(result_cache=cache),
            gpu_usd_per_hour=self.gpu_usd_per_hour,
            gpus_per_replica=self.gpus_per_replica,
        )
