"""The life of a pod, from its creation to its end, and the set of them all.

    scheduled -> has a node -> image pulled -> container starts -> server answers -> ready
        ready -> crashed -> waits (CrashLoopBackOff) -> container starts ...
        any   -> deleted -> drained -> gone
        any   -> node lost -> unready -> evicted -> gone

A pod is one process. What happens to it from outside (deletion, crash, loss of its node) interrupts
the process, at the same time but before all other events of that time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import simpy

from simulations.engine import Reading
from simulations.fleet.cluster import Cluster
from simulations.fleet.faults import crash_loop
from simulations.fleet.nodes import Nodes, Process
from simulations.fleet.plane import Plane
from simulations.fleet.pod import Pod
from simulations.fleet.rollouts import NEW, Release
from simulations.fleet.streams import Streams
from simulations.latency import ColdStart

_DRAIN_LOOK_S = 1.0


class Pods:
    """All pods of a run, and what moves them.

    Args:    settle: moves the data plane on to now, before a replica is added or taken away.
             changed: told when a pod has become ready, has stopped serving or is gone.
             release: what is wrong with the replicas of the new version.
    """

    def __init__(
        self,
        env: simpy.Environment,
        data: Plane,
        nodes: Nodes,
        cold: ColdStart,
        cluster: Cluster,
        streams: Streams,
        *,
        settle: Callable[[], None],
        changed: Callable[[], None],
        release: Release | None = None,
    ) -> None:
        self._env = env
        self._data = data
        self._nodes = nodes
        self._cold = cold
        self._cluster = cluster
        self._streams = streams
        self._settle = settle
        self._changed = changed
        self._release = release
        self._created = 0
        self.alive: list[Pod] = []
        self.gone: list[Pod] = []
        self.retired: dict[int, list[Reading]] = {}
        """Last readings of replicas that stopped serving, by version."""
        self.lost: dict[int, int] = {}
        """Requests that died with their replica, by version."""
        self.events: list[tuple[float, str, int, int]] = []
        """(time, what, pod, node; -1 without one)"""

    # -- the set ---------------------------------------------------------------------------------

    def create(self, version: int = 0, *, started: bool = False) -> None:
        """A new pod; a started one is ready at once if it finds its GPUs at once."""
        pod = Pod(self._created, version, self._env.now, ready_changed_s=self._env.now)
        self._created += 1
        self.alive.append(pod)
        pod.process = self._env.process(self._live(pod, started=started))

    def kept(self, *versions: int) -> list[Pod]:
        """Pods that are not being deleted: longest ready first, then nearest to ready."""
        found = [p for p in self.alive if not p.deleted and (not versions or p.version in versions)]
        return sorted(found, key=lambda p: (p.ready_s, p.phase == "Pending", p.bound_s, p.number))

    def ready(self, *versions: int) -> list[Pod]:
        return [pod for pod in self.kept(*versions) if pod.row >= 0]

    def ending(self, *versions: int) -> list[Pod]:
        """Pods that are being deleted."""
        return [p for p in self.alive if p.deleted and p.version in versions]

    def resize(self, version: int, count: int) -> None:
        """So many pods of a version; those that are ready shortest, or not at all, go first."""
        kept = self.kept(version)
        for _ in range(count - len(kept)):
            self.create(version)
        for pod in kept[count:]:
            pod.delete()

    def kv_usage(self) -> dict[Pod, float]:
        """Of each ready pod, now."""
        self._settle()
        return {pod: self._data.read(pod.row).kv_usage for pod in self.ready()}

    def readings(self) -> dict[Pod, Reading]:
        """Of each pod whose server answers, draining ones too."""
        return {pod: self._data.read(pod.row) for pod in self.alive if pod.row >= 0}

    def shown(self, version: int) -> list[Reading]:
        """What all replicas of a version have counted, those that are gone too."""
        alive = [self._data.read(p.row) for p in self.alive if p.version == version and p.row >= 0]
        return [*self.retired.get(version, ()), *alive]

    # -- a life ----------------------------------------------------------------------------------

    def _live(self, pod: Pod, *, started: bool) -> Process:
        try:
            if not started:
                yield self._env.timeout(self._cold.schedule_s)
            yield self._nodes.place(pod)
            at_once = started and self._env.now == pod.created_s
            if at_once:  # it has been there for long
                for what in ("image", "weights", "compiled"):
                    self._keep(pod, what)
            else:
                yield from self._pull(pod)
            pod.phase, pod.started_s = "Running", self._env.now
            yield from self._run(pod, at_once=at_once)
        except simpy.Interrupt as hit:
            if hit.cause == "node lost":
                yield from self._lose(pod)
            elif pod.row >= 0:
                yield from self._drain(pod)
            self._vanish(pod)

    def _pull(self, pod: Pod) -> Process:
        """The image, unless another pod has brought it to the node."""
        if not self._has(pod, "image") and self._cold.pull_s > 0:
            yield self._env.timeout(self._cold.pull_s)
        self._keep(pod, "image")

    def _run(self, pod: Pod, *, at_once: bool) -> Process:
        """Start, serve, crash, wait, start again: until something else interrupts."""
        while True:
            try:
                if not at_once:
                    yield from self._start(pod)
                at_once = False
                self._serve(pod)
                yield self._until_crash(pod)
                how = "crash"
            except simpy.Interrupt as hit:
                if hit.cause not in ("crash", "OOM"):
                    raise
                how = hit.cause
            self._stop(pod, how)
            wait_s, pod.backoff_s = crash_loop(pod.backoff_s, pod.restarted_s, self._env.now)
            if wait_s > 0:
                yield self._env.timeout(wait_s)
            pod.restarted_s = self._env.now
            pod.restarts += 1

    def _start(self, pod: Pod) -> Process:
        """The parts of a start, on what the node keeps, and the probe that finds it done."""
        began_s = self._env.now
        parts = self._cold.starting(
            weights_cached=self._has(pod, "weights"), compile_saved=self._has(pod, "compiled")
        )
        for part, seconds in parts.items():
            yield self._env.timeout(seconds)
            if part == "load":
                self._keep(pod, "weights")
            elif part == "compile":
                self._keep(pod, "compiled")
        probe = self._cluster.readiness
        if probe is not None:
            answers_s = self._env.now - began_s
            yield self._env.timeout(max(0.0, probe.ready_after_s(answers_s) - answers_s))

    def _until_crash(self, pod: Pod) -> simpy.Event:
        rate = self._cluster.faults.crashes_per_pod_hour
        if pod.version == NEW and self._release is not None:
            rate += self._release.crashes_per_pod_hour
        lasts_s = self._streams.wait_s(rate, "crash", pod.number, pod.restarts)
        return self._env.timeout(lasts_s) if np.isfinite(lasts_s) else self._env.event()

    def _traits(self, version: int) -> dict[str, Any]:
        """Arguments of `Plane.add` for a replica of the version."""
        if version != NEW or self._release is None:
            return {}
        return {
            "slowdown": self._release.slowdown,
            "error_share": self._release.error_share,
            "version": version,
        }

    def _serve(self, pod: Pod) -> None:
        self._settle()
        pod.row = self._data.add(**self._traits(pod.version))
        pod.ready, pod.ready_s, pod.ready_changed_s = True, self._env.now, self._env.now
        self._note("ready", pod)
        self._changed()

    def _stop(self, pod: Pod, how: str) -> None:
        """Its replica leaves the data plane, with what it holds."""
        self._settle()
        holds = self._data.outstanding(pod.row)
        last = self._data.fail(pod.row) if holds else self._data.remove(pod.row)
        self.lost[pod.version] = self.lost.get(pod.version, 0) + holds
        self.retired.setdefault(pod.version, []).append(last)
        pod.served_before_s = pod.served_s(self._env.now)
        pod.row, pod.ready_s, pod.dying = -1, np.inf, False
        if how != "node lost":
            pod.ready, pod.ready_changed_s = False, self._env.now
        self._note(how, pod)
        self._changed()

    # -- an end ----------------------------------------------------------------------------------

    def _drain(self, pod: Pod) -> Process:
        """Take no more requests, sleep, finish those that are there; the deadline cuts it short."""
        rule = self._cluster.termination
        asleep_s = self._env.now + rule.pre_stop_s
        if rule.grace_s is not None:
            pod.deadline_s = min(pod.deadline_s, self._env.now + rule.grace_s)
        self._note("deleted", pod)
        self._changed()
        self._settle()
        while self._env.now < pod.deadline_s:
            if self._env.now < asleep_s:
                look_s = asleep_s - self._env.now
            elif self._data.outstanding(pod.row) > 0:
                quiet_s = self._data.quiet_until_s(pod.row) - self._env.now
                look_s = max(quiet_s, _DRAIN_LOOK_S)
            else:
                return
            try:
                yield self._env.timeout(min(look_s, pod.deadline_s - self._env.now))
            except simpy.Interrupt as hit:
                if hit.cause == "node lost":
                    return
            self._settle()

    def _lose(self, pod: Pod) -> Process:
        """What it held has failed; the API server learns of it in two steps."""
        if pod.row >= 0:
            self._stop(pod, "node lost")
        pool = self._cluster.nodes
        if pool is None or pod.deleted:
            return
        try:
            yield self._env.timeout(pool.unreachable_s)
            pod.ready, pod.ready_changed_s = False, self._env.now
            yield self._env.timeout(pool.evict_s)
        except simpy.Interrupt:  # deleted meanwhile
            return

    def _vanish(self, pod: Pod) -> None:
        if pod.row >= 0:
            self._stop(pod, "terminated")
        self._settle()  # how many pods there are tells spares from those that serve
        self.alive.remove(pod)
        pod.gone_s = self._env.now
        pod.ready = False
        self.gone.append(pod)
        self._nodes.leave(pod)
        self._note("gone", pod)
        self._changed()

    # -- notes -----------------------------------------------------------------------------------

    def _has(self, pod: Pod, what: str) -> bool:
        assert pod.node is not None
        return (what, pod.version) in pod.node.warm

    def _keep(self, pod: Pod, what: str) -> None:
        assert pod.node is not None
        pod.node.warm.add((what, pod.version))

    def _note(self, what: str, pod: Pod) -> None:
        node = -1 if pod.node is None else pod.node.number
        self.events.append((self._env.now, what, pod.number, node))
