"""The seam between a fleet and what scales it: what is seen at a sync, and how many replicas follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol


class PodStatus(NamedTuple):
    """A pod of the scaled workload as the API server has it."""

    number: int
    phase: Literal["Pending", "Running", "Succeeded", "Failed"]
    ready: bool
    started_s: float | None
    """When its container started; None while Pending."""
    ready_changed_s: float
    """When its Ready condition last changed."""
    deleted: bool = False
    """Whether it is being deleted."""


@dataclass(frozen=True)
class Observation:
    """What the autoscaler finds at one sync."""

    now_s: float
    current: int
    """spec.replicas."""
    pods: tuple[PodStatus, ...]
    """All that the workload's selector matches, those being deleted too, but no spares; fewer or more
    than current."""
    per_pod: Callable[[str], dict[int, float]]
    """A Pods metric, or a resource (cpu in cores, memory in bytes), by pod number; pods without a value
    are left out."""
    total: Callable[[str], float | None]
    """The same metric as one value, for External and Object metrics; None where there is none."""
    status_replicas: int | None = None
    """status.replicas of the workload: pods that are not being deleted; None: as many as there are."""


class Controller(Protocol):
    """Decides at each sync; what it remembers between syncs is its own."""

    def desired(self, seen: Observation) -> int:
        """spec.replicas from now on."""
        ...
