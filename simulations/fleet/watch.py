"""What is seen of a fleet: its timeline, and what the autoscaler finds at a sync."""

from __future__ import annotations

from collections.abc import Iterable

import simpy

from simulations.control import Observation
from simulations.fleet.plane import Plane
from simulations.fleet.pod import Pod
from simulations.fleet.pods import Pods
from simulations.telemetry import Scrape, Telemetry


class Watch:
    """Scrapes all pods every interval; one row of the timeline for each time."""

    def __init__(self, env: simpy.Environment, data: Plane, pods: Pods, *, delay_s: float) -> None:
        self._env = env
        self._data = data
        self._pods = pods
        self._telemetry = Telemetry(delay_s)
        self._arrived = 0
        self.rows: list[dict[str, float]] = []

    def scrape(self, desired: int) -> None:
        """Read every pod now."""
        readings = {pod.number: reading for pod, reading in self._pods.readings().items()}
        loading = [pod.number for pod in self._pods.alive if pod.loading]
        found = self._telemetry.scrape(self._env.now, readings, loading)
        self._note(found, desired)
        self._arrived = self._data.arrived

    def _note(self, found: Scrape, desired: int) -> None:
        readings = list(found.readings.values())
        since_s = self.rows[-1]["t_s"] if self.rows else 0.0
        lasted_s = found.at_s - since_s
        arrivals = self._data.arrived - self._arrived
        self.rows.append(
            {
                "t_s": found.at_s,
                "offered_rps": arrivals / lasted_s if lasted_s > 0 else 0.0,
                "replicas_ready": len(self._pods.ready()),
                "replicas_desired": desired,
                "requests_running": sum(r.running for r in readings),
                "requests_waiting": sum(r.waiting for r in readings) + self._data.at_gateway,
                "kv_cache_usage": _mean(r.kv_usage for r in readings),
                "gpu_utilisation": _mean(found.utilisation[pod] for pod in found.readings),
            }
        )

    def observe(self, shown: list[Pod], desired: int) -> Observation:
        """What the autoscaler finds now of the pods that it scales."""
        now_s = self._env.now
        numbers = {pod.number for pod in shown}

        def per_pod(metric: str) -> dict[int, float]:
            values = self._telemetry.visible(metric, now_s)
            return {number: value for number, value in values.items() if number in numbers}

        return Observation(
            now_s=now_s,
            current=desired,
            pods=tuple(pod.status() for pod in shown),
            per_pod=per_pod,
            total=lambda metric: self._telemetry.over_all(metric, numbers, now_s),
        )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
