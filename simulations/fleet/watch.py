"""What is seen of a fleet: its timeline, and what the autoscaler finds at a sync."""

from __future__ import annotations

from collections.abc import Iterable

import simpy

from simulations.control import Observation
from simulations.engine import Reading
from simulations.fleet.plane import Plane
from simulations.fleet.pod import Pod
from simulations.fleet.pods import Pods
from simulations.metrics import Alerting, Telemetry, busy_share
from simulations.metrics.layout import N_GAUGES, N_SERVER, TOTALS, exposed
from simulations.traffic import FloatArray


class Watch:
    """Scrapes the pods, some at each slot of the interval; one row of the timeline per interval.

    Args:    timeline: whether anybody looks at the timeline; else `count` adds its rows.
    """

    def __init__(
        self,
        env: simpy.Environment,
        data: Plane,
        pods: Pods,
        telemetry: Telemetry,
        alerting: Alerting,
        *,
        slots: int = 1,
        timeline: bool = True,
    ) -> None:
        self._env = env
        self._data = data
        self._pods = pods
        self._telemetry = telemetry
        self._slots = slots
        self._timeline = timeline
        self._arrived = 0
        self._buried = 0
        self._busy: dict[Pod, float] = {}
        self.alerting = alerting
        self.rows: list[dict[str, float]] = []

    def collect(self) -> None:
        """The GPU exporters read their devices now."""
        self._collect(
            [pod for pod in self._pods.alive if pod.row >= 0],
            [pod.number for pod in self._pods.alive if pod.loading],
        )

    def _collect(self, up: list[Pod], loading: list[int]) -> None:
        busy = self._data.busy([pod.row for pod in up])
        found = dict(zip((pod.number for pod in up), busy, strict=True))
        self._telemetry.collect(self._env.now, found, loading)

    def scrape(self, slot: int, desired: int) -> None:
        """Read the pods of a slot now; at the first, a row of the timeline."""
        now_s = self._env.now
        self._bury()
        self.alerting.catch_up(now_s)
        due = [pod for pod in self._pods.alive if pod.number % self._slots == slot]
        running = [pod for pod in due if pod.row < 0 and pod.phase == "Running"]
        idle = (
            [pod.number for pod in running if pod.loading],
            [pod.number for pod in running if not pod.loading],
        )
        if not self._timeline:
            up = [pod for pod in due if pod.row >= 0]
            if self._telemetry.reads_gpus:
                self._collect(up, idle[0])
            shown = self._shown([pod.row for pod in up])
            self._telemetry.take(now_s, [pod.number for pod in up], shown, *idle)
            return
        if slot == 0:
            found = self._pods.readings()
            self._note(found, desired)
        else:
            found = {pod: self._data.read(pod.row) for pod in due if pod.row >= 0}
        exposed_by = {pod.number: found[pod] for pod in due if pod.row >= 0}
        self._telemetry.scrape(now_s, exposed_by, *idle)

    def _shown(self, rows: list[int]) -> FloatArray:
        """What the servers of some rows expose, as far as it is kept: all at once for what one takes."""
        gauges, columns = self._data.gauges(rows), self._telemetry.columns
        if columns == N_GAUGES:
            return gauges
        counts = self._data.histograms(rows) if columns == N_SERVER else {}
        return exposed(gauges, self._data.totals(rows, TOTALS), counts)

    def count(self, desired: int) -> None:
        """A row of the timeline with no more than how many pods there are."""
        ready = sum(pod.row >= 0 and not pod.deleted for pod in self._pods.alive)
        now_s = self._env.now
        self.rows.append({"t_s": now_s, "replicas_ready": ready, "replicas_desired": desired})

    def _bury(self) -> None:
        """The series of pods that are gone since then end at their times."""
        for pod in self._pods.gone[self._buried :]:
            self._telemetry.vanish(pod.gone_s, pod.number)
        self._buried = len(self._pods.gone)

    def _note(self, found: dict[Pod, Reading], desired: int) -> None:
        since_s = self.rows[-1]["t_s"] if self.rows else 0.0
        lasted_s = self._env.now - since_s
        arrivals = self._data.arrived - self._arrived
        readings = found.values()
        self.rows.append(
            {
                "t_s": self._env.now,
                "offered_rps": arrivals / lasted_s if lasted_s > 0 else 0.0,
                "replicas_ready": len(self._pods.ready()),
                "replicas_desired": desired,
                "requests_running": sum(r.running for r in readings),
                "requests_waiting": sum(r.waiting for r in readings) + self._data.at_gateway,
                "kv_cache_usage": _mean(r.kv_usage for r in readings),
                "gpu_utilisation": _mean(self._utilisation(found, since_s)),
            }
        )
        self._arrived = self._data.arrived
        self._busy = {pod: reading.busy_s for pod, reading in found.items()}

    def _utilisation(self, found: dict[Pod, Reading], since_s: float) -> Iterable[float]:
        """Of each pod since the last row, or since its start."""
        for pod, reading in found.items():
            busy_s, from_s = self._busy.get(pod, 0.0), since_s
            if pod not in self._busy or reading.started_s > since_s:
                busy_s, from_s = 0.0, reading.started_s
            yield busy_share(reading.busy_s - busy_s, self._env.now - from_s)

    def observe(self, shown: list[Pod], ending: list[Pod], desired: int) -> Observation:
        """What the autoscaler finds now.

        Args:    shown: the pods that it scales.
                 ending: those that are being deleted, which its selector still matches.
        """
        now_s = self._env.now
        self._bury()
        listed = [*shown, *ending]
        numbers = {pod.number for pod in listed}
        spares = [pod.number for pod in self._pods.alive if pod.number not in numbers]

        def per_pod(metric: str) -> dict[int, float]:
            values = self._telemetry.visible(metric, now_s)
            return {number: value for number, value in values.items() if number in numbers}

        return Observation(
            now_s=now_s,
            current=desired,
            pods=tuple(pod.status() for pod in listed),
            per_pod=per_pod,
            total=lambda metric: self._telemetry.over_all(metric, now_s, spares),
            status_replicas=len(shown),
        )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
