"""What a reconcile looks at. Plain and frozen; metric values are whole thousandths, as upstream's are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1
Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod: {resource: milli} that it requests."""

    name: str
    requests: Mapping[str, int] = field(default_factory=dict)
    restartable: bool = False
    """Of an init container: restartPolicy Always, a sidecar."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that the scale's selector matches."""

    name: str
    phase: Phase = "Running"
    ready: Status | None = "True"
    """Its Ready condition; None: it has none yet."""
    deleted: bool = False
    """Whether its deletion timestamp is set."""
    started_s: float | None = -math.inf
    """status.startTime: when the kubelet took it; None before that."""
    ready_changed_s: float = -math.inf
    """When Ready last changed."""
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    requests: Mapping[str, int] = field(default_factory=dict)
    """Pod-level requests (gate PodLevelResources); empty: none set."""


class Sample(NamedTuple):
    """A pod's value of a metric. Its age matters for cpu alone."""

    milli: int
    at_s: float = 0.0
    window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What the metrics server says of a pod: milli of one resource by container.

    None for a container: the resource is not among its values.
    """

    containers: Mapping[str, int | None]
    at_s: float = 0.0
    window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the metrics APIs answer, by the metric's (or the resource's) name.

    A metric that is not there is an API error; an empty one means that nothing was reported.
    """

    pods: Mapping[str, Mapping[str, Sample]] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    external: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Every series of the metric."""
    resources: Mapping[str, Mapping[str, Usage]] = field(default_factory=dict)


class MetricError(Exception):
    """A metric gave no proposal."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """What one metric asks for, and what is reported of it."""

    count: int
    usage: int
    """Milli: the average over pods, or the total of a Value target."""
    utilization: int | None = None
    """Percent of the requests, of a Utilization target."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far from 1 a ratio of usage to target may be without any change."""

    down: float
    up: float
    as_distance: bool = False
    """Before v1.33: the distance from 1 is compared, so that 55/50, in doubles, is outside of 0.1."""

    def within(self, ratio: float) -> bool:
        """Both ends belong to it."""
        if self.as_distance:
            return abs(1.0 - ratio) <= self.up
        return 1.0 - self.down <= ratio <= 1.0 + self.up
