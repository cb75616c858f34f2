"""Flags of the controller, and what differs between its versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serving.errors import InputError

_OLDEST = (1, 25)
_CHANGES: tuple[tuple[tuple[int, int], dict[str, Any]], ...] = (
    ((1, 26), {"missing_uses_request": False, "events_of_one_direction": False}),
    ((1, 32), {"absent_container_fails_metric": False}),
    ((1, 33), {"tolerance_as_distance": False}),
    ((1, 34), {"pod_level_resources": True}),
    ((1, 35), {"configurable_tolerance": True}),
    ((1, 36), {"scaled_to_zero_condition": True}),
    ((1, 37), {"scale_to_zero": True}),
    ((1, 38), {"succeeded_pods_ignored": True}),
)


@dataclass(frozen=True, slots=True)
class Options:
    """Flags of kube-controller-manager with production's defaults, and the rules of v1.37.

    Source:  kube-controller-manager, pkg/controller/podautoscaler and pkg/features/kube_features.go.
             Versions of PRs 109058, 112178 are those of the first release after a copy of June 2022
             (v1.25-dev) that lacks them.
    """

    tolerance: float = 0.1
    """--horizontal-pod-autoscaler-tolerance."""
    downscale_window_s: float = 300.0
    """--horizontal-pod-autoscaler-downscale-stabilization."""
    cpu_initialization_s: float = 300.0
    """--horizontal-pod-autoscaler-cpu-initialization-period."""
    initial_readiness_delay_s: float = 30.0
    """--horizontal-pod-autoscaler-initial-readiness-delay."""
    legacy_up_factor: float = 2.0
    legacy_up_minimum: float = 4.0

    missing_uses_request: bool = False
    """Before v1.26 (PR 112178): on the way down a missing pod uses its request, whatever the target."""
    events_of_one_direction: bool = False
    """Before v1.26 (PR 109058): a policy's period looks at changes of its own direction only."""
    absent_container_fails_metric: bool = False
    """Before v1.32 (PR 127193): one pod that lacks the container fails a ContainerResource metric."""
    tolerance_as_distance: bool = False
    """Before v1.33 (KEP 4951): abs(1 - ratio) is compared with the tolerance."""
    pod_level_resources: bool = True
    """Gate PodLevelResources (KEP 2837): on from v1.34; pod-level requests win over the containers'."""
    configurable_tolerance: bool = True
    """Gate HPAConfigurableTolerance (KEP 4951): on from v1.35; closed, a spec's tolerance is ignored."""
    scaled_to_zero_condition: bool = True
    """From v1.36 (PR 135118): a workload at 0 is looked at only if the controller brought it there."""
    scale_to_zero: bool = True
    """Gate HPAScaleToZero (KEP 2021): on from v1.37."""
    succeeded_pods_ignored: bool = False
    """From v1.38 (PR 141302): pods of phase Succeeded are ignored like failed ones."""

    @classmethod
    def at(cls, version: str, **changes: Any) -> Options:
        """The rules of a version of Kubernetes, with its gates as they are by default.

        Args:    version: '1.35' or 'v1.35'.
                 changes: fields that differ, for example an open gate.
        Raises:  InputError: not a version, or older than v1.25.
        """
        try:
            major, minor = (int(part) for part in version.removeprefix("v").split(".")[:2])
        except ValueError as error:
            raise InputError(
                f"version(={version!r}) is no version of Kubernetes", remedy="Write it as '1.35'."
            ) from error
        if (major, minor) < _OLDEST:
            raise InputError(
                f"version(={version!r}) is older than what is known", remedy="Use 1.25 or later."
            )
        later = [rules for since, rules in _CHANGES if (major, minor) < since]
        earlier = [rules for since, rules in _CHANGES if (major, minor) >= since]
        found: dict[str, Any] = {}
        for rules in later:
            found |= {name: not value for name, value in rules.items()}
        for rules in earlier:
            found |= rules
        return cls(**(found | changes))
