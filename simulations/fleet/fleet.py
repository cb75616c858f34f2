"""The control plane of a fleet: pods and their machines, the gateway's list of replicas, and the
autoscaler, as SimPy processes.

Order of events. The data plane is moved on to the time of a control event before the event looks at it
or changes it; a request that arrives at that very time comes after it. Of control events at one time
those that strike pods (deletion, crash, loss of a node) come first, the others in the order in which
they were scheduled. What is missing is replaced at the same time, after what took it away.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import simpy

from serving.alerts import ALERTS
from serving.errors import InputError
from serving.hpa import GPU_UTILISATION
from serving.plan import Plan
from simulations.control import Controller
from simulations.engine import DataPlane, SchedulerOptions
from simulations.fleet.blast import held_beyond_s
from simulations.fleet.cluster import Activation, Cluster
from simulations.fleet.faults import Faults, inject
from simulations.fleet.nodes import Nodes, Process
from simulations.fleet.plane import Plane
from simulations.fleet.pod import Pod
from simulations.fleet.pods import Pods
from simulations.fleet.releases import Rollout
from simulations.fleet.rollouts import NEW, Release
from simulations.fleet.streams import Streams
from simulations.fleet.watch import Watch
from simulations.latency import LatencyModel
from simulations.metrics import Alerting, Telemetry
from simulations.metrics.layout import N_SERVER, server_columns
from simulations.traffic import Schedule

ShareDone = Callable[[float], None]


class Fleet:
    """One run: traffic on a plan's pods, with its autoscaler where it has one.

    A static plan needs no controller.

    Warm spares are standby pods: the fleet holds `desired + warm_spares`, of which the `desired`
    that have been ready longest serve. A scale-up promotes spares at once and starts new ones
    behind them. The autoscaler sees the serving pods and those still starting on their behalf,
    never the spares.

    Args:    release: a new version on its way.
             data: None is the engine twin.
             watched: whether anybody looks at it but its autoscaler; else there are no alerts, the
                 timeline has pods alone, and what the autoscaler does not read is not scraped. What
                 happens is the same.
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
        release: Release | None = None,
        data: Plane | None = None,
        watched: bool = True,
    ) -> None:
        if cluster.activation is not None and plan.hpa is None:
            raise InputError(
                f"activation needs an autoscaler, and plan {plan.name!r} has replicas(={plan.replicas})",
                remedy="Give the plan an hpa, or the cluster no activation.",
            )
        self.plan = plan
        self.cluster = cluster
        self.duration_s = duration_s
        self.scale_events = 0
        self.stopped, self.over_s = "", duration_s
        self._controller = controller
        read = _read_by(plan, cluster, controller)
        self._timeline = watched
        self._scraped = watched or bool(read)
        self._exported = cluster.metrics.gpu_exporter_s > 0 and (watched or GPU_UTILISATION in read)
        self._release = release
        # Drawn whether or not they are used, so that every plan sees the same phases.
        self._sync_phase_s = rng.uniform(0, cluster.sync_period_s)
        pipeline = cluster.metrics
        self._scrape_phase_s = rng.uniform(0, pipeline.scrape_interval_s)
        self._exporter_phase_s = rng.uniform(0, pipeline.gpu_exporter_s)
        relist_phase_s = rng.uniform(0, pipeline.relist_s)
        evaluation_phase_s = rng.uniform(0, pipeline.evaluation_interval_s)
        streams = Streams(rng)
        if data is None:
            data = _engine(plan, schedule, latency, streams)
        self.data = data
        self.desired = self._initial()
        self._wanted_log = [(0.0, self.desired + plan.warm_spares)]
        self._env = env = simpy.Environment()
        self._news, self._applied = env.event(), env.event()
        self._streams = streams
        self.nodes = Nodes(
            env,
            cluster.nodes,
            plan.gpus_per_replica,
            max_gpus=cluster.max_gpus,
            streams=streams,
        )
        self.pods = Pods(
            env,
            self.data,
            self.nodes,
            latency.cold_start,
            cluster,
            streams,
            settle=self._settle,
            changed=self._changed,
            release=release,
        )
        telemetry = Telemetry(
            pipeline,
            memory_share=plan.engine.gpu_memory_utilization,
            relist_phase_s=relist_phase_s,
            alerts=watched,
            columns=N_SERVER if watched else server_columns(read),
        )
        self.watch = Watch(
            env,
            self.data,
            self.pods,
            telemetry,
            Alerting(
                telemetry,
                interval_s=pipeline.evaluation_interval_s,
                phase_s=evaluation_phase_s,
                rules=ALERTS if watched else (),
            ),
            slots=pipeline.scrape_slots,
            timeline=watched,
        )
        self.rollout = Rollout(
            env,
            self.pods,
            release,
            wanted=lambda: (self.desired + plan.warm_spares, self.desired),
            settle=self._settle,
            changed=self._changed,
            applied=lambda: self._applied,
        )

    def _initial(self) -> int:
        if self.plan.replicas is not None:
            return self.plan.replicas
        assert self.plan.hpa is not None
        asked = self.cluster.initial_replicas
        return self.plan.hpa.min_replicas if asked is None else asked

    def run(
        self,
        on_progress: ShareDone | None = None,
        *,
        settled: Callable[[], str] | None = None,
        looks: int = 20,
    ) -> pd.DataFrame:
        """Run the traffic and the grace after it; the timeline, one row per scrape.

        In the grace requests end, and nothing else happens.

        Args:    on_progress: called at each look with the share of the traffic that is over.
                 settled: asked at each look but the last; what it says, unless empty, ends the run
                     there, `stopped` says so, and all accounts are until then.

        Returns: DataFrame t_s, offered_rps, replicas_ready, replicas_desired, requests_running,
                 requests_waiting, kv_cache_usage, gpu_utilisation (means over pods, 0 to 1).
        """
        pods = self.desired + self.plan.warm_spares
        self.nodes.start(pods)
        for _ in range(pods):
            self.pods.create(started=True)
        self._env.process(self._tend())
        self._env.process(self._scrape())
        if self._exported:
            self._env.process(self._collect())
        if self._controller is not None and (self._timeline or self._scraped):
            self._env.process(self._autoscale(self._controller))
        if self.cluster.activation is not None:
            self._env.process(self._activate(self.cluster.activation))
        inject(self._env, self.cluster.faults, self.pods)
        for look in range(1, looks + 1):
            self._env.run(until=self.duration_s * look / looks)
            self._settle()
            if on_progress is not None:
                on_progress(look / looks)
            if settled is not None and look < looks and (why := settled()):
                self.stopped, self.over_s = why, self._env.now
                break
        for pod, reading in self.pods.readings().items():
            self.pods.retired.setdefault(pod.version, []).append(reading)
        if not self.stopped:
            self._settle(self.duration_s + self.cluster.grace_s)
        return pd.DataFrame(self.watch.rows)

    # -- traffic ---------------------------------------------------------------------------------

    def _settle(self, until_s: float | None = None) -> None:
        """Move the data plane on to now, under the fleet as it was until now."""
        at_s = self._env.now if until_s is None else until_s
        if at_s <= self.data.now_s:
            return
        serving = [pod.row for pod in self._shown(self.rollout.live) if pod.row >= 0]
        canary = []
        if self.rollout.canary_share > 0:
            canary = [pod.row for pod in self.pods.ready(NEW)]
        if canary:
            self.data.advance(at_s, serving, canary, self.rollout.canary_share)
        else:
            self.data.advance(at_s, serving)

    def _shown(self, versions: tuple[int, ...]) -> list[Pod]:
        """Pods that serve or will, of some versions: all but the spares."""
        kept = self.pods.kept(*versions)
        return kept[: max(self.desired, len(kept) - self.plan.warm_spares)]

    # -- sizes -----------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Something is missing, or ready, or wanted: look at it when all else of now has happened."""
        if not self._news.triggered:
            self._news.succeed()

    def _tend(self) -> Process:
        """Keep as many pods of each version as there should be."""
        while True:
            yield self._news
            self._news = self._env.event()
            self._resize()
            applied, self._applied = self._applied, self._env.event()
            applied.succeed()

    def _resize(self) -> None:
        """Apply the sizes, which may follow from each other, until they are."""
        self._settle()
        before = None
        while before != (sizes := self.rollout.sizes()):
            for version, count in enumerate(sizes):
                self.pods.resize(version, count)
            before = sizes

    def _scale(self, desired: int) -> None:
        """Set the number of serving replicas; pods follow."""
        if desired == self.desired:
            return
        self._settle()
        self.scale_events += 1
        self.desired = desired
        self._wanted_log.append((self._env.now, desired + self.plan.warm_spares))
        self._resize()

    # -- loops -----------------------------------------------------------------------------------

    def _scrape(self) -> Process:
        pipeline = self.cluster.metrics
        yield self._env.timeout(self._scrape_phase_s)
        while True:
            for slot in range(pipeline.scrape_slots):
                if self._scraped:
                    self._settle()
                    self.watch.scrape(slot, self.desired)
                if slot == 0 and not self._timeline:
                    self.watch.count(self.desired)
                yield self._env.timeout(pipeline.scrape_interval_s / pipeline.scrape_slots)

    def _collect(self) -> Process:
        yield self._env.timeout(self._exporter_phase_s)
        while True:
            self._settle()
            self.watch.collect()
            yield self._env.timeout(self.cluster.metrics.gpu_exporter_s)

    def _autoscale(self, controller: Controller) -> Process:
        yield self._env.timeout(self._sync_phase_s)
        # It sees metrics and pods: the data plane is moved on where it changes something.
        while True:
            versions = self.rollout.observed()
            shown, ending = self._shown(versions), self.pods.ending(*versions)
            seen = self.watch.observe(shown, ending, self.desired)
            self._scale(controller.desired(seen))
            yield self._env.timeout(self.cluster.sync_period_s)

    def _activate(self, rule: Activation) -> Process:
        """The first replica for the first request, and none after a long silence."""
        yield self._env.timeout(self._streams.of("activation").uniform(0, rule.polling_s))
        arrived, active_s = 0, 0.0
        while True:
            self._settle()
            held = sum(self.data.outstanding(p.row) for p in self.pods.alive if p.row >= 0)
            if self.data.at_gateway + held > 0 or self.data.arrived > arrived:
                active_s = self._env.now
                if self.desired == 0:
                    assert self.plan.hpa is not None
                    self._scale(max(1, self.plan.hpa.min_replicas))
            elif self.desired > 0 and self._env.now - active_s > rule.cooldown_s:
                self._scale(0)
            arrived = self.data.arrived
            yield self._env.timeout(rule.polling_s)

    # -- accounts --------------------------------------------------------------------------------

    def gpu_held_s(self) -> float:
        """Seconds of GPU time to be paid until the end of the traffic: of pods, or of nodes."""
        return self.nodes.held_s(self.over_s)

    def gpu_hours_a_day(self) -> float:
        """The same in hours, per 24 hours of traffic."""
        return self.gpu_held_s() / self.duration_s * 24

    def least_gpu_hours_a_day(self) -> float:
        """What it comes to at least, by now: what was held, and what an autoscaler never lets go.

        Where pods may lack their GPUs or lose them, only what was held.
        """
        now_s = self._env.now
        held_s = self.nodes.held_s(now_s)
        cluster, hpa = self.cluster, self.plan.hpa
        sure = cluster.nodes is None and cluster.max_gpus is None and self._release is None
        if sure and cluster.faults == Faults():
            least = self.desired if hpa is None else hpa.min_replicas
            pods = min(least + self.plan.warm_spares, len(self.pods.ready()))
            held_s += pods * self.plan.gpus_per_replica * (self.duration_s - now_s)
        return held_s / self.duration_s * 24

    def served_s(self) -> float:
        """Seconds that replicas were up, ready or draining, until the end of the traffic."""
        return sum(pod.served_s(self.over_s) for pod in self.pods.alive + self.pods.gone)

    @property
    def busy_s(self) -> float:
        """Seconds inside engine steps, over all replicas, until the end of the traffic."""
        return sum(r.busy_s for readings in self.pods.retired.values() for r in readings)

    @property
    def active_s(self) -> float:
        """The same with the gaps between steps."""
        return sum(r.active_s for readings in self.pods.retired.values() for r in readings)

    def errors(self, version: int) -> int:
        """Times that a replica of the version failed a request, until the end of the traffic."""
        counted = sum(reading.failed for reading in self.pods.retired.get(version, ()))
        return counted + self.pods.lost.get(version, 0)

    def extra_gpu_hours(self) -> float:
        """GPU hours that pods held beyond what was wanted, while a release was under way."""
        if self._release is None:
            return 0.0
        over_s = self.rollout.progress.over_s
        until_s = self.duration_s if np.isnan(over_s) else over_s
        held = [(p.bound_s, p.gone_s) for p in self.pods.alive + self.pods.gone]
        bound = [(start_s, end_s) for start_s, end_s in held if np.isfinite(start_s)]
        beyond_s = held_beyond_s(bound, self._wanted_log, self._release.at_s, until_s)
        return beyond_s * self.plan.gpus_per_replica / 3600

    def alerts(self) -> pd.DataFrame:
        """What fired until the end of the traffic: alert, started_at_s, ended_at_s."""
        return self.watch.alerting.fired(self.over_s)

    def events(self) -> pd.DataFrame:
        """What happened to pods: t_s, event, pod, node (-1: none yet)."""
        return pd.DataFrame(self.pods.events, columns=["t_s", "event", "pod", "node"])


def _read_by(plan: Plan, cluster: Cluster, controller: Controller | None) -> frozenset[str]:
    """Metrics that the autoscaler reads; none where it cannot do anything."""
    hpa = plan.hpa
    if controller is None or hpa is None:
        return frozenset()
    start = hpa.min_replicas if cluster.initial_replicas is None else cluster.initial_replicas
    if hpa.min_replicas == hpa.max_replicas == start and cluster.activation is None:
        return frozenset()
    sources = [m.pods or m.external or m.object for m in hpa.effective_metrics]
    return frozenset("a resource" if one is None else one.metric.name for one in sources)


def _engine(
    plan: Plan,
    schedule: Schedule,
    latency: LatencyModel,
    streams: Streams,
) -> DataPlane:
    """The engine twin. A plan is judged by what its steps take, not by the machine's bad moments."""
    return DataPlane(
        schedule,
        latency,
        SchedulerOptions.of(plan.engine, latency),
        gateway=plan.gateway,
        histograms=True,
        noise=False,
        seed=int(streams.of("gateway").integers(2**31)),
    )
