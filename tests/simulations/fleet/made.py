"""Fleets on the plane by hand, for the tests of what happens around replicas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from serving.plan import Plan
from simulations.control import Controller, Observation
from simulations.fleet import Cluster, Fleet, Release
from simulations.latency import ColdStart
from simulations.traffic import Schedule
from tests.simulations.fleet.hand_plane import HandPlane
from tests.simulations.models import latency, plan

COLD = ColdStart(schedule_s=2, pull_s=30, start_s=88, source="assumed")
"""Two minutes from the decision to a replica that answers."""


class Script:
    """A controller that asks for what it was told: ((from, replicas), ...).

    Like the autoscaler it may leave a fleet of none alone.
    """

    def __init__(self, *asks: tuple[float, int], wakes: bool = True) -> None:
        self._asks = asks
        self._wakes = wakes

    def desired(self, seen: Observation) -> int:
        if seen.current == 0 and not self._wakes:
            return 0
        return [n for at_s, n in self._asks if at_s <= seen.now_s][-1]


def even(rate_rps: float, duration_s: float, *, tokens: int = 100) -> Schedule:
    """Even arrivals of equal requests, none at a time of a whole second."""
    times = np.arange(0.5 / rate_rps, duration_s, 1 / rate_rps) + 1e-4
    return Schedule(times, np.full(len(times), 50), np.full(len(times), tokens))


def fleet(
    schedule: Schedule,
    *,
    cluster: Cluster | None = None,
    controller: Controller | None = None,
    release: Release | None = None,
    a_plan: Plan | None = None,
    cold: ColdStart = COLD,
    duration_s: float = 3600.0,
    seed: int = 0,
    **plane: Any,
) -> tuple[Fleet, HandPlane, pd.DataFrame]:
    """A fleet that has run, its plane and its timeline."""
    data = HandPlane(schedule, **plane)
    made = Fleet(
        a_plan or plan(replicas=2),
        schedule,
        latency(cold_start=cold),
        cluster or Cluster(),
        controller,
        duration_s=duration_s,
        rng=np.random.default_rng(seed),
        release=release,
        data=data,
    )
    return made, data, made.run()


def when(made: Fleet, event: str) -> list[float]:
    """The times of an event."""
    found = made.events()
    return [float(t) for t in found.loc[found["event"] == event, "t_s"]]
