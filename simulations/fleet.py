"""The control plane of a fleet: pods, what is scraped from them, and the autoscaler, as SimPy
processes.

The data plane is moved on to each control event before the event looks at it or changes it.
Control events at one time run in the order in which they were scheduled.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import simpy
from pydantic import Field

from serving.plan import Plan
from serving.values import Value
from simulations.control import Controller, Observation, PodStatus
from simulations.engine import DataPlane, Reading, SchedulerOptions
from simulations.latency import LatencyModel
from simulations.telemetry import Scrape, Telemetry
from simulations.traffic import Schedule

Process = Generator[simpy.Event, Any, None]
ShareDone = Callable[[float], None]
_DRAIN_LOOK_S = 1.0


class Cluster(Value):
    """What a plan runs on: the delays of its control loops, and how many GPUs there are."""

    sync_period_s: float = Field(15.0, gt=0)
    """Between two reconciles of the autoscaler; their phase is drawn from the seed."""
    scrape_interval_s: float = Field(15.0, gt=0)
    """Between two readings of the pods, GPU exporter included; their phase is drawn too."""
    metrics_delay_s: float = Field(5.0, ge=0)
    """From a reading to the autoscaler being able to see it: exporter, storage, adapter."""
    max_gpus: int | None = Field(None, ge=1)
    """Pods beyond this stay Pending until a GPU is given back; None is no limit."""
    initial_replicas: int | None = Field(None, ge=0)
    """Replicas ready at the start under an autoscaler; None is its minimum."""
    grace_s: float = Field(600.0, ge=0)
    """After the end of the traffic, for requests that are still in the fleet."""


@dataclass(eq=False)
class Pod:
    """One replica from its creation to its deletion."""

    number: int
    created_s: float
    phase: Literal["Pending", "Running"] = "Pending"
    bound_s: float = np.inf
    """When it got its GPUs, which it keeps until it is gone."""
    started_s: float | None = None
    ready_s: float = np.inf
    gone_s: float = np.inf
    deleted: bool = False
    row: int = -1
    """Its row in the data plane; -1 while it is not ready."""
    process: simpy.Process | None = field(default=None, repr=False)

    def status(self) -> PodStatus:
        ready = self.row >= 0
        since_s = self.ready_s if ready else self.created_s
        return PodStatus(self.number, self.phase, ready, self.started_s, since_s)

    def gpu_held_s(self, until_s: float) -> float:
        return max(0.0, min(self.gone_s, until_s) - min(self.bound_s, until_s))

    def served_s(self, until_s: float) -> float:
        return max(0.0, min(self.gone_s, until_s) - min(self.ready_s, until_s))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


class Fleet:
    """One run: traffic on a plan's pods, with its autoscaler where it has one.

    A static plan needs no controller.

    Warm spares are standby pods: the fleet holds `desired + warm_spares`, of which the `desired`
    that have been ready longest serve. A scale-up promotes spares at once and starts new ones
    behind them. The autoscaler sees the serving pods and those still starting on their behalf,
    never the spares.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        latency: LatencyModel,
        cluster: Cluster,
        controller: Controller | None,
        *,
        duration_s: float,
        rng: np.random.Generator,
    ) -> None:
        self.plan = plan
        self.cluster = cluster
        self._controller = controller
        self.duration_s = duration_s
        self.pods: list[Pod] = []
        self.gone: list[Pod] = []
        self.busy_s = self.active_s = 0.0
        self.scale_events = 0
        self._cold = latency.cold_start
        self._env = simpy.Environment()
        gpus = np.inf if cluster.max_gpus is None else cluster.max_gpus
        self._gpus = simpy.Container(self._env, capacity=gpus, init=gpus)
        self._created = 0
        self._telemetry = Telemetry(self.cluster.metrics_delay_s)
        # Drawn whether or not they are used, so that every plan sees the same phases.
        self._sync_phase_s = rng.uniform(0, cluster.sync_period_s)
        self._scrape_phase_s = rng.uniform(0, cluster.scrape_interval_s)
        self.data = DataPlane(
            schedule,
            latency,
            SchedulerOptions.of(plan.engine, latency),
            noise=False,  # a plan is judged by what its steps take, not by the machine's bad moments
        )
        self.desired = self._initial()
        self._rows: list[dict[str, float]] = []

    def _initial(self) -> int:
        if self.plan.replicas is not None:
            return self.plan.replicas
        assert self.plan.hpa is not None
        least = self.plan.hpa.min_replicas
        asked = self.cluster.initial_replicas
        return least if asked is None else asked

    def run(self, on_progress: ShareDone | None = None) -> pd.DataFrame:
        """Run the traffic and the grace after it; the timeline, one row per scrape.

        Returns: DataFrame t_s, offered_rps, replicas_ready, replicas_desired, requests_running,
                 requests_waiting, kv_cache_usage, gpu_utilisation (means over pods, 0 to 1).
        """
        for _ in range(self.desired + self.plan.warm_spares):
            self._create(started=True)
        self._env.process(self._scrape())
        if self._controller is not None:
            self._env.process(self._autoscale(self._controller))
        steps = 20
        for step in range(1, steps + 1):
            self._env.run(until=self.duration_s * step / steps)
            self._settle()
            if on_progress is not None:
                on_progress(step / steps)
        self._account()
        self.data.advance(self.duration_s + self.cluster.grace_s, self._serving_rows())
        return pd.DataFrame(self._rows)

    # -- pods ------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Move the data plane on to now, under the fleet as it was until now."""
        self.data.advance(self._env.now, self._serving_rows())

    def _ordered(self) -> list[Pod]:
        """Pods that are not being deleted: longest ready first, then nearest to ready."""
        kept = [pod for pod in self.pods if not pod.deleted]
        return sorted(kept, key=lambda p: (p.ready_s, p.phase == "Pending", p.bound_s, p.number))

    def _serving_rows(self) -> list[int]:
        return [pod.row for pod in self._ordered()[: self.desired] if pod.row >= 0]

    def _create(self, *, started: bool = False) -> None:
        pod = Pod(self._created, self._env.now)
        self._created += 1
        self.pods.append(pod)
        pod.process = self._env.process(self._live(pod, started=started))

    def _live(self, pod: Pod, *, started: bool) -> Process:
        """Scheduling, a GPU, image, start, ready; a pod deleted on the way is gone at once."""
        claim = None
        try:
            if not started:
                yield self._env.timeout(self._cold.schedule_s)
            claim = self._gpus.get(self.plan.gpus_per_replica)
            yield claim
            pod.bound_s = self._env.now
            if not started:
                yield self._env.timeout(self._cold.pull_s)
            pod.phase, pod.started_s = "Running", self._env.now
            if not started:
                yield self._env.timeout(self._cold.start_s)
            self._settle()
            pod.row = self.data.add()
            pod.ready_s = self._env.now
        except simpy.Interrupt:
            if claim is not None and claim.triggered:
                pod.bound_s = min(pod.bound_s, self._env.now)
            elif claim is not None:
                claim.cancel()
            self._vanish(pod)

    def _drain(self, pod: Pod) -> Process:
        """Take no more requests, finish those that are there, be gone."""
        while self.data.outstanding(pod.row) > 0:
            quiet_s = self.data.quiet_until_s(pod.row) - self._env.now
            yield self._env.timeout(max(quiet_s, _DRAIN_LOOK_S))
            self._settle()
        self._count(self.data.remove(pod.row))
        self._vanish(pod)

    def _vanish(self, pod: Pod) -> None:
        pod.gone_s = self._env.now
        self.pods.remove(pod)
        self.gone.append(pod)
        if np.isfinite(pod.bound_s):
            self._gpus.put(self.plan.gpus_per_replica)

    def _scale(self, desired: int) -> None:
        """Set the number of serving replicas; pods follow: the newest go first."""
        self._settle()
        self.scale_events += int(desired != self.desired)
        self.desired = desired
        wanted = desired + self.plan.warm_spares
        kept = self._ordered()
        for _ in range(wanted - len(kept)):
            self._create()
        for pod in kept[wanted:]:
            pod.deleted = True
            if pod.row >= 0:
                self._env.process(self._drain(pod))
            elif pod.process is not None and pod.process.is_alive:
                pod.process.interrupt()

    # -- what is seen, and what follows ----------------------------------------------------------

    def _scrape(self) -> Process:
        yield self._env.timeout(self._scrape_phase_s)
        arrived = 0
        while True:
            self._settle()
            loading = [p.number for p in self.pods if p.row < 0 and p.phase == "Running"]
            readings = {p.number: self.data.read(p.row) for p in self.pods if p.row >= 0}
            found = self._telemetry.scrape(self._env.now, readings, loading)
            self._note(found, self.data.arrived - arrived)
            arrived = self.data.arrived
            yield self._env.timeout(self.cluster.scrape_interval_s)

    def _note(self, found: Scrape, arrivals: int) -> None:
        readings = list(found.readings.values())
        since_s = self._rows[-1]["t_s"] if self._rows else 0.0
        self._rows.append(
            {
                "t_s": found.at_s,
                "offered_rps": arrivals / (found.at_s - since_s) if found.at_s > since_s else 0.0,
                "replicas_ready": sum(pod.row >= 0 and not pod.deleted for pod in self.pods),
                "replicas_desired": self.desired,
                "requests_running": sum(r.running for r in readings),
                "requests_waiting": sum(r.waiting for r in readings) + self.data.at_gateway,
                "kv_cache_usage": _mean(r.kv_usage for r in readings),
                "gpu_utilisation": _mean(found.utilisation[pod] for pod in found.readings),
            }
        )

    def _autoscale(self, controller: Controller) -> Process:
        yield self._env.timeout(self._sync_phase_s)
        while True:
            self._settle()
            self._scale(controller.desired(self._observe()))
            yield self._env.timeout(self.cluster.sync_period_s)

    def _observe(self) -> Observation:
        now_s = self._env.now
        shown = self._ordered()[: self.desired]
        numbers = {pod.number for pod in shown}

        def per_pod(metric: str) -> dict[int, float]:
            values = self._telemetry.visible(metric, now_s)
            return {number: value for number, value in values.items() if number in numbers}

        return Observation(
            now_s=now_s,
            current=self.desired,
            pods=tuple(pod.status() for pod in shown),
            per_pod=per_pod,
            total=lambda metric: self._telemetry.over_all(metric, numbers, now_s),
        )

    # -- accounts --------------------------------------------------------------------------------

    def _count(self, reading: Reading) -> None:
        self.busy_s += reading.busy_s
        self.active_s += reading.active_s

    def _account(self) -> None:
        for pod in self.pods:
            if pod.row >= 0:
                self._count(self.data.read(pod.row))

    def gpu_held_s(self) -> float:
        """Seconds of GPU time held, over all pods, until the end of the traffic."""
        held_s = sum(pod.gpu_held_s(self.duration_s) for pod in self.pods + self.gone)
        return held_s * self.plan.gpus_per_replica

    def served_s(self) -> float:
        """Seconds that replicas were up, ready or draining, until the end of the traffic."""
        return sum(pod.served_s(self.duration_s) for pod in self.pods + self.gone)
