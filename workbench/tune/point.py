"""A point of the search space, and the Plan that it stands for.

A point is a plain mapping of names to values, so that a trial of the search, a rule of practice and
a row of the stored study all become a Plan by the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from serving.hpa import (
    Behavior,
    HpaSpec,
    ScalingPolicy,
    ScalingRules,
    pods_metric,
    quantity,
)
from serving.plan import EngineArgs, Plan, Slo
from serving.values import Value
from workbench.tune.space import Candidate, SearchSpace

Point = Mapping[str, Any]
TUNED = "tuned"
JOIN = " + "
ORDERED = (
    "warm_spares",
    "scale_up_window_s",
    "scale_up_pods",
    "scale_down_window_s",
    "scale_down_percent",
    "tolerance",
)
"""Choices of the space that have an order."""
_SCALE_UP_PERIOD_S = 15
_SCALE_DOWN_PERIOD_S = 60


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
    """Let a trial choose a point.

    Args:    space: with its replica ranges set (`sized`).
             seqs: choices of max_num_seqs by variant.
    """
    assert space.min_replicas is not None
    assert space.max_replicas is not None
    point: dict[str, Any] = {}

    def position(name: str, choices: tuple[Any, ...]) -> None:
        point[name] = choices[trial.suggest_int(position_name(name), 0, len(choices) - 1)]

    variant = point["variant"] = trial.suggest_categorical("variant", tuple(seqs))
    position(seqs_name(variant), seqs[variant])
    metrics = tuple(JOIN.join(names) for names in space.metrics)
    point["metrics"] = trial.suggest_categorical("metrics", metrics)
    for metric in point["metrics"].split(JOIN):
        bounds = space.targets[metric]
        name = target_name(metric)
        point[name] = trial.suggest_float(name, bounds.low, bounds.high, log=True)
    for name in ("min_replicas", "max_replicas"):
        point[name] = trial.suggest_int(name, *getattr(space, name))
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
    metrics = []
    for name in point["metrics"].split(JOIN):
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
