"""Which pods count, and what they request.

Source:  replica_calculator.go (groupPods, calculateRequests), metrics/client.go; v1.37.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulations.autoscaler.options import Options
from simulations.autoscaler.values import Container, MetricError, Pod, Sample, Usage


@dataclass(frozen=True, slots=True)
class Groups:
    """Pods by what their metric is worth."""

    ready_count: int
    unready: frozenset[str]
    missing: frozenset[str]
    ignored: frozenset[str]


def group(
    pods: Sequence[Pod],
    samples: Mapping[str, Sample],
    resource: str,
    options: Options,
    now_s: float,
) -> Groups:
    """Sort pods; the first that fits wins: ignored, unready as it is Pending, missing, unready, ready.

    Readiness is looked at for the resource 'cpu' alone; a Pods metric has the resource ''.
    """
    ready, unready, missing, ignored = 0, set(), set(), set()
    for pod in pods:
        if pod.deleted or _ended(pod, options):
            ignored.add(pod.name)
        elif pod.phase == "Pending":
            unready.add(pod.name)
        elif pod.name not in samples:
            missing.add(pod.name)
        elif resource == "cpu" and _initializing(pod, samples[pod.name], options, now_s):
            unready.add(pod.name)
        else:
            ready += 1
    return Groups(ready, frozenset(unready), frozenset(missing), frozenset(ignored))


def _ended(pod: Pod, options: Options) -> bool:
    succeeded = pod.phase == "Succeeded" and options.succeeded_pods_ignored
    return pod.phase == "Failed" or succeeded


def _initializing(pod: Pod, sample: Sample, options: Options, now_s: float) -> bool:
    """Whether a pod's cpu still says nothing, as it starts or never became ready."""
    if pod.ready is None or pod.started_s is None:
        return True
    if pod.started_s + options.cpu_initialization_s > now_s:
        # A whole window must have been measured since its readiness changed.
        return pod.ready == "False" or sample.at_s < pod.ready_changed_s + sample.window_s
    first_readiness_s = pod.started_s + options.initial_readiness_delay_s
    return pod.ready == "False" and first_readiness_s > pod.ready_changed_s


def samples_of(usages: Mapping[str, Usage], container: str, options: Options) -> dict[str, Sample]:
    """A resource of whole pods, or of one container; pods without it are left out, so missing.

    Raises:  MetricError: before PR 127193, a pod lacks the container.
    """
    found: dict[str, Sample] = {}
    for pod, usage in usages.items():
        if container:
            if container not in usage.containers and options.absent_container_fails_metric:
                raise MetricError(f"container {container} not present in metrics for pod {pod}")
            values = [usage.containers.get(container)]
        else:
            values = list(usage.containers.values())
        known = [value for value in values if value is not None]
        if known and len(known) == len(values):
            found[pod] = Sample(sum(known), usage.at_s, usage.window_s)
    return found


def requests(
    pods: Sequence[Pod], container: str, resource: str, options: Options
) -> dict[str, int]:
    """What each pod requests, in milli: of one container, or of the whole pod where none is named.

    Raises:  MetricError: any pod, of whatever phase, lacks the request.
    """
    found: dict[str, int] = {}
    for pod in pods:
        if options.pod_level_resources and pod.requests and not container:
            found[pod.name] = _of_pod(pod, resource)
        else:
            found[pod.name] = _of_containers(pod, container, resource)
    return found


def _of_pod(pod: Pod, resource: str) -> int:
    if resource in pod.requests:
        return pod.requests[resource]
    every = (*pod.containers, *pod.init_containers)
    if not any(resource in one.requests for one in every):
        raise MetricError(f"missing pod-level request for {resource} in Pod {pod.name}")
    return _scheduled(pod, resource)


def _scheduled(pod: Pod, resource: str) -> int:
    """What the scheduler reserves: all that run together, or the largest init container's moment."""
    sidecars = peak = 0
    for one in pod.init_containers:
        asked = one.requests.get(resource, 0)
        sidecars += asked if one.restartable else 0
        peak = max(peak, sidecars if one.restartable else sidecars + asked)
    return max(peak, sidecars + sum(c.requests.get(resource, 0) for c in pod.containers))


def _of_containers(pod: Pod, container: str, resource: str) -> int:
    running: list[Container] = [*pod.containers, *(c for c in pod.init_containers if c.restartable)]
    counted = [one for one in running if container in ("", one.name)]
    if container and not counted:
        raise MetricError(f"container {container} not found in Pod {pod.name}")
    for one in counted:
        if resource not in one.requests:
            raise MetricError(
                f"missing request for {resource} in container {one.name} of Pod {pod.name}"
            )
    return sum(one.requests[resource] for one in counted)
