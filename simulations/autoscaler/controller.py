"""The autoscaler as the fleet calls it: one pass per sync, its memory kept between them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from serving.hpa import HpaSpec
from simulations.autoscaler.compiled import Compiled
from simulations.autoscaler.decision import Decision, State
from simulations.autoscaler.options import Options
from simulations.autoscaler.reconcile import reconcile
from simulations.autoscaler.values import MAX_INT64, Container, Metrics, Pod, Sample, Usage
from simulations.control import Observation, PodStatus

_CONTAINER = "vllm"
_MOST = float(MAX_INT64)
_METRICS_SERVER = ("cpu", "memory")


class HpaController:
    """A `Controller` that is the HorizontalPodAutoscaler.

    Args:    requests: {resource: milli} of each pod's container, for Resource metrics.
    """

    def __init__(
        self,
        spec: HpaSpec,
        options: Options | None = None,
        *,
        requests: Mapping[str, int] | None = None,
    ) -> None:
        self._compiled = Compiled.of(spec, options)
        self._containers = (Container(_CONTAINER, dict(requests or {})),)
        self._state = State()
        self._pods: dict[PodStatus, Pod] = {}
        self.last: Decision | None = None
        """The last pass: its conditions, events and reason."""

    def desired(self, seen: Observation) -> int:
        """spec.replicas after one pass over what is seen."""
        status = seen.status_replicas
        # Most pods are as they were at the sync before.
        self._pods = {pod: self._pods.get(pod) or self._pod(pod) for pod in seen.pods}
        decision = reconcile(
            self._compiled,
            self._state,
            now_s=seen.now_s,
            current=seen.current,
            status_replicas=len(seen.pods) if status is None else status,
            pods=list(self._pods.values()),
            metrics=self._metrics(seen),
        )
        self._state = decision.state
        self.last = decision
        return decision.desired

    def restart(self) -> None:
        """Start kube-controller-manager again: it forgets recommendations and scale events."""
        self._state = self._state.restarted()

    def _pod(self, pod: PodStatus) -> Pod:
        return Pod(
            name=str(pod.number),
            phase=pod.phase,
            ready="True" if pod.ready else "False",
            deleted=pod.deleted,
            started_s=pod.started_s,
            ready_changed_s=pod.ready_changed_s,
            containers=self._containers,
        )

    def _metrics(self, seen: Observation) -> Metrics:
        """What the metrics APIs answer, each metric asked for once."""
        pods: dict[str, dict[str, Sample]] = {}
        objects: dict[str, int] = {}
        external: dict[str, list[int]] = {}
        resources: dict[str, dict[str, Usage]] = {}
        for metric in self._compiled.metrics:
            resource = metric.resource or metric.container_resource
            if metric.pods is not None:
                name = metric.pods.metric.name
                values = seen.per_pod(name).items()
                now_s = seen.now_s
                pods[name] = {str(pod): Sample(thousandths(value), now_s) for pod, value in values}
            elif metric.object is not None:
                name = metric.object.metric.name
                total = seen.total(name)
                objects |= {} if total is None else {name: thousandths(total)}
            elif metric.external is not None:
                name = metric.external.metric.name
                total = seen.total(name)
                external |= {} if total is None else {name: [thousandths(total)]}
            elif resource is not None:
                resources[resource.name] = _usages(resource.name, seen)
        return Metrics(pods, objects, external, resources)


def _usages(resource: str, seen: Observation) -> dict[str, Usage]:
    """What the metrics server says: cpu and memory, of any other resource that it has no value."""
    if resource not in _METRICS_SERVER:
        return {str(pod.number): Usage({_CONTAINER: None}, seen.now_s) for pod in seen.pods}
    return {
        str(pod): Usage({_CONTAINER: thousandths(value)}, seen.now_s)
        for pod, value in seen.per_pod(resource).items()
    }


def thousandths(value: float) -> int:
    """A value as an adapter writes its quantity: truncated to thousandths, and 0 for no number.

    Source:  prometheus-adapter, pkg/custom-provider/provider.go.
    """
    scaled = value * 1000.0
    if -_MOST < scaled < _MOST:
        return int(scaled)
    return 0 if math.isnan(scaled) else int(math.copysign(_MOST, scaled))
