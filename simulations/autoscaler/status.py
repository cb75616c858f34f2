"""What the controller writes into an HPA's status, and the events beside it."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.autoscaler.values import Replicas

LIMIT_MESSAGES = {
    "DesiredWithinRange": "the desired count is within the acceptable range",
    "ScaleUpLimit": "the desired replica count is increasing faster than the maximum scale rate",
    "ScaleDownLimit": "the desired replica count is decreasing faster than the maximum scale rate",
    "TooManyReplicas": "the desired replica count is more than the maximum replica count",
    "TooFewReplicas": "the desired replica count is less than the minimum replica count",
}
STABILIZED_MESSAGES = {
    "ReadyForNewScale": "recommended size matches current size",
    "ScaleUpStabilized": (
        "recent recommendations were lower than current one, applying the lowest recent"
        " recommendation"
    ),
    "ScaleDownStabilized": (
        "recent recommendations were higher than current one, applying the highest recent"
        " recommendation"
    ),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of the HPA: AbleToScale, ScalingActive, ScalingLimited or ScaledToZero."""

    type: str
    status: bool
    reason: str
    message: str = ""
    changed_s: float = 0.0
    """When its status last changed."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event of the HPA; all but SuccessfulRescale are warnings."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class MetricStatus:
    """What is reported of one metric, beside its name."""

    name: str
    replicas: Replicas


Conditions = tuple[Condition, ...]


def with_condition(conditions: Conditions, new: Condition) -> Conditions:
    """Set a condition in its place, or behind the others; the time of its last change is kept."""
    for i, known in enumerate(conditions):
        if known.type == new.type:
            if known.status == new.status:
                if known.reason == new.reason and known.message == new.message:
                    return conditions
                new = Condition(new.type, new.status, new.reason, new.message, known.changed_s)
            return (*conditions[:i], new, *conditions[i + 1 :])
    return (*conditions, new)


def without_condition(conditions: Conditions, kind: str) -> Conditions:
    """The conditions but those of one type."""
    return tuple(known for known in conditions if known.type != kind)


def is_true(conditions: Conditions, kind: str) -> bool:
    """Whether there is such a condition and it holds."""
    return any(known.type == kind and known.status for known in conditions)
