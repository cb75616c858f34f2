"""A rollout as it happens: how many pods each version has, and which of them take traffic."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import simpy

from serving.gateway.analysis import Analysis, Served, Verdict, judge
from simulations.fleet.analysis import served
from simulations.fleet.nodes import Process
from simulations.fleet.pod import Pod
from simulations.fleet.pods import Pods
from simulations.fleet.rollouts import (
    NEW,
    OLD,
    BlueGreen,
    Canary,
    Recreate,
    Release,
    RollingUpdate,
)
from simulations.result import Outcome

Stage = Literal["old", "recreate", "rolling", "canary", "beside", "new"]


@dataclass
class Progress:
    """What became of a release, and when; NaN where it did not happen."""

    outcome: Outcome = "not started"
    reason: str = ""
    """Why it was rolled back."""
    live_s: float = np.nan
    """The new version takes its first traffic."""
    judged_s: float = np.nan
    """It is found worse, or undecided, or late, and takes no more."""
    over_s: float = np.nan
    """Nothing is left to do: the pods of the version that lost are gone."""


class Rollout:
    """The sizes and the traffic of both versions; without a release, of one.

    Args:    wanted: () -> (replicas with spares, replicas without).
             settle: moves the data plane on to now, before traffic is moved.
             changed: asks for the sizes to be applied.
             applied: () -> an event for the next time that they were, for whatever reason.
    """

    def __init__(
        self,
        env: simpy.Environment,
        pods: Pods,
        release: Release | None,
        *,
        wanted: Callable[[], tuple[int, int]],
        settle: Callable[[], None],
        changed: Callable[[], None],
        applied: Callable[[], simpy.Event],
    ) -> None:
        self._env = env
        self._pods = pods
        self._release = release
        self._wanted = wanted
        self._settle = settle
        self._changed = changed
        self._applied = applied
        self._stage: Stage = "old"
        self._step_share = 0.0
        self.live: tuple[int, ...] = (OLD,)
        """Versions that share the traffic; the canary's share is taken from it."""
        self.canary_share = 0.0
        self.progress = Progress()
        if release is not None:
            env.process(self._run(release))

    def sizes(self) -> tuple[int, int]:
        """Pods of the old and of the new version that there should be now."""
        replicas, serving = self._wanted()
        if self._release is None or self._stage == "old":
            return replicas, 0
        strategy = self._release.strategy
        if self._stage == "recreate":
            left = any(pod.version == OLD for pod in self._pods.alive)
            return 0, 0 if left else replicas
        if self._stage == "rolling" and isinstance(strategy, RollingUpdate):
            counts = [len(found(v)) for v in (OLD, NEW) for found in (self._kept, self._up)]
            return strategy.step(replicas, *counts)
        if self._stage == "canary" and isinstance(strategy, Canary):
            return replicas, strategy.pods(self._step_share, serving)
        return (replicas if self._stage == "beside" else 0), replicas

    def observed(self) -> tuple[int, ...]:
        """Versions whose pods the autoscaler sees."""
        return (OLD, NEW) if self.canary_share > 0 else self.live

    # -- strategies ------------------------------------------------------------------------------

    def _run(self, release: Release) -> Process:
        yield self._env.timeout(release.at_s)
        self.progress.outcome = "under way"
        strategy = release.strategy
        if isinstance(strategy, Recreate):
            yield from self._replace("recreate")
        elif isinstance(strategy, RollingUpdate):
            yield from self._replace("rolling")
        elif isinstance(strategy, BlueGreen):
            yield from self._blue_green(strategy, release.progress_deadline_s)
        else:
            yield from self._canary(strategy, release.progress_deadline_s)

    def _replace(self, stage: Stage) -> Process:
        """Both versions share the traffic, as far as they have pods."""
        self._settle()
        self.live = (OLD, NEW)
        self._enter(stage)
        while not self._up(NEW):
            yield self._applied()
        self.progress.live_s = self._env.now
        while self._alive(OLD) or len(self._up(NEW)) < self._wanted()[0]:
            yield self._applied()
        self._enter("new")
        self._complete()

    def _blue_green(self, strategy: BlueGreen, deadline_s: float) -> Process:
        rule = strategy.analysis
        before = self._served(OLD, rule) if rule is not None else None
        self._enter("beside")
        if not (yield from self._ready(lambda: self._wanted()[0], deadline_s)):
            yield from self._go_back("not ready in time")
            return
        self._route((NEW,), 0.0)
        if rule is not None and before is not None:
            old = self._served(OLD, rule).since(before)
            verdict = yield from self._watch(rule, 1, old)
            if verdict != "sound":
                yield from self._go_back(verdict)
                return
        yield self._env.timeout(strategy.keep_old_s)
        yield from self._finish()

    def _canary(self, strategy: Canary, deadline_s: float) -> Process:
        for share in strategy.shares:
            self._step_share = share
            self._enter("canary")
            yes = yield from self._ready(self._canary_pods(strategy, share), deadline_s)
            if not yes:
                yield from self._go_back("not ready in time")
                return
            self._route((OLD,), share)
            verdict = yield from self._watch(strategy.analysis, len(strategy.shares), None)
            if verdict != "sound":
                yield from self._go_back(verdict)
                return
        self._enter("beside")
        if not (yield from self._ready(lambda: self._wanted()[0], deadline_s)):
            yield from self._go_back("not ready in time")
            return
        self._route((NEW,), 0.0)
        yield from self._finish()

    # -- their steps -----------------------------------------------------------------------------

    def _enter(self, stage: Stage) -> None:
        self._stage = stage
        self._changed()

    def _route(self, live: tuple[int, ...], canary_share: float) -> None:
        self._settle()
        self.live, self.canary_share = live, canary_share
        if np.isnan(self.progress.live_s):
            self.progress.live_s = self._env.now

    def _ready(
        self, count: Callable[[], int], deadline_s: float
    ) -> Generator[simpy.Event, Any, bool]:
        """Wait for so many new pods; whether they came in time."""
        late = self._env.timeout(deadline_s)
        while len(self._up(NEW)) < count():
            if late.processed:
                return False
            yield self._applied() | late
        return True

    def _watch(
        self, rule: Analysis, steps: int, old: Served | None
    ) -> Generator[simpy.Event, Any, Verdict]:
        """Look until the new version is worse, sound for a window, or undecided for all of them.

        Args:    old: what the new version is compared with; None is the old one meanwhile.
        """
        began_s = self._env.now
        new_before, old_before = self._served(NEW, rule), self._served(OLD, rule)
        while True:
            yield self._env.timeout(rule.look_s)
            self._settle()
            new = self._served(NEW, rule).since(new_before)
            beside = self._served(OLD, rule).since(old_before) if old is None else old
            verdict = judge(new, beside, rule, rule.looks(steps))
            if rule.over(verdict, self._env.now - began_s):
                return verdict

    def _go_back(self, reason: str) -> Process:
        """All traffic to the old version at once; the new pods are taken away."""
        self._settle()
        self.live, self.canary_share = (OLD,), 0.0
        self.progress.judged_s, self.progress.reason = self._env.now, reason
        self.progress.outcome = "rolled back"
        self._enter("old")
        while self._alive(NEW):
            yield self._applied()
        self.progress.over_s = self._env.now

    def _finish(self) -> Process:
        self._enter("new")
        while self._alive(OLD):
            yield self._applied()
        self._complete()

    def _complete(self) -> None:
        self.live = (NEW,)
        self.progress.outcome, self.progress.over_s = "completed", self._env.now

    def _canary_pods(self, strategy: Canary, share: float) -> Callable[[], int]:
        return lambda: strategy.pods(share, self._wanted()[1])

    def _kept(self, version: int) -> list[Pod]:
        return self._pods.kept(version)

    def _up(self, version: int) -> list[Pod]:
        return self._pods.ready(version)

    def _alive(self, version: int) -> bool:
        return any(pod.version == version for pod in self._pods.alive)

    def _served(self, version: int, rule: Analysis) -> Served:
        return served(self._pods.shown(version), self._pods.lost.get(version, 0), rule.latency)
