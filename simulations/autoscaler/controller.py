"""The autoscaler as the fleet calls it: one pass per sync, its memory kept between them."""

from __future__ import annotations

from serving.hpa import HpaSpec
from simulations.autoscaler.reconcile import Compiled, State, reconcile
from simulations.autoscaler.values import Metrics, Options, Pod
from simulations.control import Observation


class HpaController:
    """A `Controller` that is the HorizontalPodAutoscaler."""

    def __init__(self, spec: HpaSpec, options: Options | None = None) -> None:
        self._compiled = Compiled.of(spec, options)
        self._state = State()

    def desired(self, seen: Observation) -> int:
        """spec.replicas after one pass over what is seen."""
        pods = [Pod(str(pod.number), pod.phase, pod.ready) for pod in seen.pods]
        per_pod: dict[str, dict[str, int]] = {}
        objects: dict[str, int] = {}
        external: dict[str, list[int]] = {}
        for metric in self._compiled.spec.metrics:
            if metric.pods is not None:
                name = metric.pods.metric.name
                values = seen.per_pod(name)
                per_pod[name] = {str(pod): _milli(value) for pod, value in values.items()}
            elif metric.object is not None:
                name = metric.object.metric.name
                total = seen.total(name)
                objects |= {} if total is None else {name: _milli(total)}
            elif metric.external is not None:
                name = metric.external.metric.name
                total = seen.total(name)
                external |= {} if total is None else {name: [_milli(total)]}
        decision = reconcile(
            self._compiled,
            self._state,
            now_s=seen.now_s,
            current=seen.current,
            status_replicas=len(seen.pods),
            pods=pods,
            metrics=Metrics(per_pod, objects, external),
        )
        self._state = decision.state
        return decision.desired


def _milli(value: float) -> int:
    """Thousandths, rounded up, as an adapter writes a quantity."""
    return -int(-value * 1000 // 1)
