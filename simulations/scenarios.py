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
from simulations.traffic import Edge, Workload

_PARTS = ("plan", "workload", "cluster", "release", "edge")


class Arm(Value):
    """One way to do it: what differs from the study's own plan, workload, cluster, release or edge."""

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


class FleetStudy(Value):
    """A claim about a fleet, and the arms whose metrics answer it."""

    kind: Literal["fleet"] = "fleet"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    question: str
    claim: str
    """What is tested, as it was said."""
    device: str
    """Card of the device that the latency model is assumed from; a measured model replaces it."""
    plan: dict[str, Any]
    workload: dict[str, Any]
    cluster: dict[str, Any] = Field(default_factory=dict)
    release: dict[str, Any] | None = None
    """A new version that is rolled out meanwhile."""
    edge: dict[str, Any] | None = None
    arms: tuple[Arm, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    metrics: tuple[str, ...] = Field(min_length=1)
    """Of the result, compared between arms on the same seeds."""

    @model_validator(mode="after")
    def _can_be_simulated(self) -> FleetStudy:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms(={names}) must have different names")
        self.cases()
        return self

    def cases(self) -> list[Case]:
        """Every arm, in order."""
        return [self._case(arm) for arm in self.arms]

    def _case(self, arm: Arm) -> Case:
        parts = deepcopy({name: getattr(self, name) for name in _PARTS})
        for path, value in arm.changes.items():
            _put(parts, path, value)
        release, edge = parts["release"], parts["edge"]
        return Case(
            arm.name,
            Plan.model_validate({"name": arm.name, **parts["plan"]}),
            Workload.model_validate(parts["workload"]),
            Cluster.model_validate(parts["cluster"]),
            None if release is None else Release.model_validate(release),
            None if edge is None else Edge.model_validate(edge),
        )


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
