"""Studies of a fleet, declared as data: a claim, what is simulated, and the arms that are compared.

kind: idle-share    answered by arithmetic on published profiles, see `idle.py`
kind: fleet         a plan, a workload and a cluster, simulated once per arm and seed
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from serving.errors import InputError
from serving.plan import Plan
from serving.values import Value, one_line
from simulations.fleet import Cluster, Release
from simulations.idle import IdleStudy
from simulations.latency import ColdStart
from simulations.traffic import Edge, Workload

_PARTS = ("plan", "workload", "cluster", "release", "edge", "site", "site_device", "cold_start")


class Arm(Value):
    """One way to do it: what differs from the study's own plan, workload, cluster and so on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)
    changes: dict[str, Any] = Field(default_factory=dict)
    """Dotted path from the study -> its value here: {"plan.replicas": 8}; null takes it away."""


@dataclass(frozen=True)
class Case:
    """What is simulated for one arm."""

    name: str
    plan: Plan
    workload: Workload
    cluster: Cluster
    release: Release | None
    edge: Edge | None
    site: Plan | None
    site_device: str
    cold_start: ColdStart | None


class Judgement(Value):
    """One reading of the claim: it holds where the whole interval lies beyond the limit.

    Of `metric` in `arm`, or of what it is more (or times as much) than in `against` on the same seeds.
    """

    metric: str
    arm: str
    against: str | None = None
    compared: Literal["difference", "ratio"] = "difference"
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Judgement:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"exactly one of above and below must be set for {self.metric!r}")
        return self


class FleetStudy(Value):
    """A claim about a fleet, and the arms whose metrics answer it."""

    kind: Literal["fleet"] = "fleet"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    question: str
    claim: str
    """What is tested, as it was said."""
    device: str
    """Card of the device that the latency model is assumed from; a measured model replaces it."""
    site_device: str | None = None
    """Card of the sites' device; None: the same."""
    plan: dict[str, Any]
    workload: dict[str, Any]
    cluster: dict[str, Any] = Field(default_factory=dict)
    release: dict[str, Any] | None = None
    """A new version that is rolled out meanwhile."""
    edge: dict[str, Any] | None = None
    site: dict[str, Any] | None = None
    """The plan of each site at the edge, without replicas: those are the edge's."""
    cold_start: dict[str, Any] | None = None
    """Instead of the latency model's own."""
    quick: dict[str, Any] = Field(default_factory=dict)
    """Changes to every arm that make a run short enough for a first look."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    metrics: tuple[str, ...] = Field(min_length=1)
    """Of the result, compared between arms on the same seeds."""
    answer: tuple[Judgement, ...] = Field(min_length=1)
    """How the claim is judged."""
    neglects: str = ""
    """What the answer leaves out, beyond what the twin does."""

    @model_validator(mode="after")
    def _can_be_simulated(self) -> FleetStudy:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms(={names}) must have different names")
        for rule in self.answer:
            for arm in (rule.arm, rule.against):
                if arm is not None and arm not in names:
                    raise ValueError(f"answer(arm={arm!r}) must be one of {', '.join(names)}")
            if rule.metric not in self.metrics:
                raise ValueError(f"answer(metric={rule.metric!r}) must be one of the metrics")
        self.cases()
        return self

    def cases(self, *, quick: bool = False) -> list[Case]:
        """Every arm, in order."""
        return [self._case(arm, self.quick if quick else {}) for arm in self.arms]

    def _case(self, arm: Arm, further: dict[str, Any]) -> Case:
        parts = deepcopy({name: getattr(self, name) for name in _PARTS})
        for path, value in [*arm.changes.items(), *further.items()]:
            _put(parts, path, deepcopy(value))
        release, edge, cold = parts["release"], parts["edge"], parts["cold_start"]
        if edge is not None and parts["site"] is None:
            raise ValueError("site(=None) must say what runs at the sites of an edge")
        return Case(
            arm.name,
            Plan.model_validate({"name": arm.name, **parts["plan"]}),
            Workload.model_validate(parts["workload"]),
            Cluster.model_validate(parts["cluster"]),
            None if release is None else Release.model_validate(release),
            None if edge is None else Edge.model_validate(edge),
            None if edge is None else _site_plan(arm.name, parts["site"], edge),
            parts["site_device"] or self.device,
            None if cold is None else ColdStart.model_validate(cold),
        )


def _site_plan(name: str, site: dict[str, Any], edge: dict[str, Any]) -> Plan:
    replicas = Edge.model_validate(edge).replicas_per_site
    return Plan.model_validate({"name": name, "replicas": replicas, **site})


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    if [*above, last][0] not in _PARTS:
        raise ValueError(f"changes(={path!r}) must begin with one of {', '.join(_PARTS)}")
    for name in above:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
    tree[last] = value


Scenario = Annotated[IdleStudy | FleetStudy, Field(discriminator="kind")]
_SCENARIO: TypeAdapter[IdleStudy | FleetStudy] = TypeAdapter(Scenario)


def read_scenario(path: Path) -> IdleStudy | FleetStudy:
    """A study from its YAML file.

    Raises:  InputError: no such file, or not a study.
    """
    try:
        return _SCENARIO.validate_python(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror})", remedy="Check the path."
        ) from error
    except (ValidationError, yaml.YAMLError) as error:
        said = one_line(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"{path} is not a study of a fleet: {said}", remedy="See experiments/fleet/."
        ) from error
