"""What a reconcile looks at. Plain and frozen; metric values are whole thousandths, as upstream's are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that the scale's selector matches."""

    name: str
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Running"
    ready: bool = True
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the metrics APIs answer: {metric: {pod: milli}}, {metric: milli}, {metric: [milli, ...]}.

    A metric that is not there is an API error; an empty one means that nothing was reported.
    """

    pods: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    external: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """Flags of the controller, with production's defaults."""

    tolerance: float = 0.1
    downscale_window_s: float = 300.0
    legacy_up_factor: float = 2.0
    legacy_up_minimum: float = 4.0


class MetricError(Exception):
    """A metric gave no proposal; the reason is upstream's condition reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
