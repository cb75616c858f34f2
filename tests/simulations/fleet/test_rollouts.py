"""Strategies: Kubernetes' arithmetic by its tables, and rollouts from their start to their end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import Slo
from simulations.fleet import (
    Analysis,
    BlueGreen,
    Canary,
    Cluster,
    Faults,
    Fleet,
    Recreate,
    Release,
    RollingUpdate,
    blast_radius,
)
from simulations.fleet.blast import held_beyond_s
from simulations.result import BlastRadius
from tests.simulations.fleet.hand_plane import HandPlane
from tests.simulations.fleet.made import Script, even, fleet
from tests.simulations.models import plan

SLO = Slo(ttft_p99_s=1.5)
QUICK = Analysis(window_s=120, look_s=30, min_requests=50)


def rolled(
    strategy: Any, *, rate_rps: float = 4.0, replicas: int = 4, **changes: Any
) -> tuple[Fleet, HandPlane, pd.DataFrame, BlastRadius]:
    """A release at 600 s of an hour; a request takes 1 s."""
    release_fields = {
        k: changes.pop(k)
        for k in ("slowdown", "error_share", "crashes_per_pod_hour")
        if k in changes
    }
    made, data, timeline = fleet(
        even(rate_rps, 3600),
        a_plan=changes.pop("a_plan", plan(replicas=replicas, slo=SLO)),
        release=Release(at_s=600, strategy=strategy, **release_fields),
        slots=changes.pop("slots", 8),
        **changes,
    )
    radius = blast_radius(
        data.requests,
        made.rollout.progress,
        SLO,
        errors=made.errors(1),
        extra_gpu_hours=made.extra_gpu_hours(),
    )
    # Nobody sends anything again here, and the traffic ends a second before the run.
    assert radius.errors == radius.failed
    return made, data, timeline, radius


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "limits"),
    [
        # The table above ResolveFenceposts.
        (2, "0%", "1%", (0, 1)),
        (1, "0%", "1%", (0, 1)),
        (2, "1%", "25%", (1, 0)),
        (1, "1%", "25%", (1, 0)),
        (2, "1%", "0%", (1, 0)),
        (1, "1%", "0%", (1, 0)),
        # The page on Deployments: 25 % by default, up for the surge and down for the unavailable.
        (4, "25%", "25%", (1, 1)),
        (10, "25%", "25%", (3, 2)),
        (10, "30%", "30%", (3, 3)),
        (3, "25%", "25%", (1, 0)),
        (10, 3, 2, (3, 2)),
        (2, 1, 5, (1, 2)),
    ],
)
def test_rounding_is_kubernetes(
    replicas: int, surge: int | str, unavailable: int | str, limits: tuple[int, int]
) -> None:
    rule = RollingUpdate(max_surge=surge, max_unavailable=unavailable)
    assert rule.limits(replicas) == limits


@pytest.mark.parametrize(("surge", "unavailable"), [(0, 0), ("0%", 0), (0, "0%"), ("0%", "0%")])
def test_a_rollout_that_cannot_move_is_refused(surge: int | str, unavailable: int | str) -> None:
    with pytest.raises(ValueError, match="may not be 0 when max_surge is 0"):
        RollingUpdate(max_surge=surge, max_unavailable=unavailable)


@pytest.mark.parametrize("amount", ["25", "-1%", "x%", -1])
def test_amounts_are_numbers_or_percentages(amount: int | str) -> None:
    with pytest.raises(ValueError, match="max_surge"):
        RollingUpdate(max_surge=amount)


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        # The example in reconcileOldReplicaSets: 10 replicas, 2 unavailable, 3 surge.
        ((10, 10, 0, 0), (8, 3)),
        ((8, 8, 3, 0), (8, 5)),
        ((8, 8, 5, 0), (8, 5)),
        ((8, 7, 5, 0), (8, 5)),  # the new ones crash, an old one too: nothing more is taken away
        ((8, 8, 5, 2), (6, 5)),
        ((1, 1, 10, 9), (0, 10)),
        # Old pods that are not ready cost no availability.
        ((10, 6, 0, 0), (8, 3)),
    ],
)
def test_steps_are_the_deployment_controllers(
    counts: tuple[int, int, int, int], sizes: tuple[int, int]
) -> None:
    assert RollingUpdate(max_surge=3, max_unavailable=2).step(10, *counts) == sizes


@given(
    replicas=st.integers(1, 20),
    surge=st.integers(0, 5),
    unavailable=st.integers(0, 5),
    data=st.data(),
)
def test_a_rolling_update_keeps_its_limits_and_ends(
    replicas: int, surge: int, unavailable: int, data: st.DataObject
) -> None:
    if surge == 0 and unavailable == 0:
        unavailable = 1
    rule = RollingUpdate(max_surge=surge, max_unavailable=unavailable)
    surge, unavailable = rule.limits(replicas)
    old, new, new_ready = replicas, 0, 0
    for _ in range(4 * replicas + 4):
        before = (old, new)
        old, new = rule.step(replicas, old, old, new, new_ready)
        assert old + new <= replicas + surge
        assert old + new_ready >= replicas - unavailable
        if (old, new) == before:
            if new_ready == new:
                break
            new_ready += data.draw(st.integers(1, new - new_ready))
    assert (old, new, new_ready) == (0, replicas, replicas)


def test_recreate_has_a_gap_and_loses_nothing() -> None:
    made, data, timeline, radius = rolled(Recreate())
    assert (data.outcome == "answered").all()
    assert radius.outcome == "completed"
    assert radius.live_at_s == pytest.approx(600 + 1 + 120, abs=1)
    assert ((timeline["t_s"] > 610) & (timeline["replicas_ready"] == 0)).sum() >= 7
    assert made.extra_gpu_hours() == 0
    assert {pod.version for pod in made.pods.alive} == {1}
    waited = data.requests["arrived_at_s"].between(610, 710)
    assert (data.requests["e2e_s"][waited] > 10).all()


@pytest.mark.parametrize(
    ("strategy", "least", "most"),
    [
        (RollingUpdate(max_surge=1, max_unavailable=0), 4, 5),
        (RollingUpdate(max_surge=0, max_unavailable=1), 3, 4),
        (RollingUpdate(max_surge="100%", max_unavailable=0), 4, 8),
    ],
)
def test_rolling_keeps_its_limits_all_the_way(
    strategy: RollingUpdate, least: int, most: int
) -> None:
    made, data, timeline, radius = rolled(strategy)
    assert (data.outcome == "answered").all()
    assert radius.outcome == "completed"
    assert timeline["replicas_ready"].min() == least
    held = [(p.bound_s, p.gone_s) for p in made.pods.alive + made.pods.gone]
    times = np.arange(600.5, 1800)
    counts = [sum(start <= t < end for start, end in held) for t in times]
    # One more for a moment: a deleted pod finishes while its successor starts.
    assert most <= max(counts) <= most + (most > 4 or least < 4)
    rounds = 1 if strategy.max_surge == "100%" else 4
    assert radius.completed_at_s == pytest.approx(600 + 120 * rounds, abs=10)


def test_rolling_without_a_look_touches_everybody() -> None:
    _, data, _, radius = rolled(RollingUpdate(), error_share=0.5)
    assert radius.outcome == "completed"
    assert radius.detected_after_s is None
    after = data.requests["arrived_at_s"] > radius.completed_at_s
    assert (data.version[after] == 1).all()
    assert radius.failed == pytest.approx(0.5 * radius.touched, rel=0.1)


def test_blue_green_switches_at_once_and_pays_twice_meanwhile() -> None:
    made, data, _, radius = rolled(BlueGreen(keep_old_s=30))
    assert (data.outcome == "answered").all()
    assert radius.live_at_s == pytest.approx(720)
    arrived = data.requests["arrived_at_s"]
    assert (data.version[arrived < 720] == 0).all()
    assert (data.version[arrived >= 720] == 1).all()
    assert radius.completed_at_s == pytest.approx(750, abs=1)
    # Four more from 2 s on, for the cold start and 30 s.
    assert radius.extra_gpu_hours == pytest.approx(4 * (118 + 30) / 3600, rel=0.01)
    assert made.desired == 4


def test_blue_green_with_analysis_goes_back() -> None:
    _, data, _, radius = rolled(BlueGreen(analysis=QUICK), error_share=0.2)
    assert (radius.outcome, radius.reason) == ("rolled back", "worse")
    assert radius.detected_after_s == pytest.approx(30)
    assert radius.rolled_back_after_s == pytest.approx(1, abs=1)
    assert radius.touched == 30 * 4
    arrived = data.requests["arrived_at_s"]
    assert (data.version[arrived > 750] == 0).all()


def test_a_canary_of_one_percent_bounds_the_blast_radius() -> None:
    """All its requests fail, and only they: one in a hundred until the first look."""
    _, data, _, radius = rolled(Canary(analysis=QUICK), error_share=1.0, rate_rps=40, replicas=10)
    assert (radius.outcome, radius.reason) == ("rolled back", "worse")
    assert radius.live_at_s == pytest.approx(720)
    assert radius.detected_after_s == pytest.approx(30)
    assert radius.failed == radius.touched
    assert radius.touched == pytest.approx(0.01 * 30 * 40, abs=6)
    assert (data.outcome[data.version == 0] == "answered").all()
    # One pod beside ten, for its cold start and a look.
    assert radius.extra_gpu_hours == pytest.approx((118 + 30) / 3600, rel=0.02)


def test_a_slow_canary_is_found_by_its_latency_once_there_are_enough_requests() -> None:
    _, _, _, radius = rolled(Canary(share=0.05, analysis=QUICK), slowdown=2.0, rate_rps=16)
    assert (radius.outcome, radius.reason) == ("rolled back", "worse")
    # 50 requests at 0.8 a second take a minute.
    assert radius.detected_after_s == pytest.approx(60, abs=31)
    assert radius.failed == 0
    assert radius.slowed == radius.touched > 0


def test_a_sound_canary_goes_through_its_steps() -> None:
    made, data, timeline, radius = rolled(
        Canary(share=0.1, steps=(0.25, 0.5), analysis=QUICK), rate_rps=8
    )
    assert radius.outcome == "completed"
    assert (data.outcome == "answered").all()
    arrived = data.requests["arrived_at_s"]
    first = arrived.between(720.5, 839.5)
    assert (data.version[first] == 1).mean() == pytest.approx(0.1, abs=0.03)
    assert (data.version[arrived > radius.completed_at_s] == 1).all()
    assert {pod.version for pod in made.pods.alive} == {1}
    assert timeline["replicas_ready"].min() == 4


def test_a_canary_with_too_few_requests_is_not_promoted() -> None:
    _, _, _, radius = rolled(Canary(analysis=QUICK), rate_rps=1)
    assert (radius.outcome, radius.reason) == ("rolled back", "undecided")
    assert radius.detected_after_s == pytest.approx(4 * 120)


def test_a_version_that_finds_no_gpus_goes_back_at_its_deadline() -> None:
    release = Release(at_s=600, strategy=BlueGreen(), progress_deadline_s=300)
    made, data, _ = fleet(
        even(4, 3600),
        a_plan=plan(replicas=4),
        release=release,
        cluster=Cluster(max_gpus=6),
        slots=8,
    )
    progress = made.rollout.progress
    assert (progress.outcome, progress.reason) == ("rolled back", "not ready in time")
    assert progress.judged_s == 900
    assert (data.version == 0).all()
    assert {pod.version for pod in made.pods.alive} == {0}


def test_the_autoscaler_goes_on_during_a_rollout() -> None:
    spec = HpaSpec(max_replicas=9, metrics=(pods_metric(REQUESTS_RUNNING, 5),))
    made, data, timeline, radius = rolled(
        RollingUpdate(max_surge=1, max_unavailable=0),
        a_plan=plan(hpa=spec, slo=SLO),
        controller=Script((0, 2), (700, 6), (2500, 3)),
        cluster=Cluster(initial_replicas=2),
    )
    assert radius.outcome == "completed"
    assert (data.outcome == "answered").all()
    assert timeline["replicas_ready"].max() == 6
    assert len(made.pods.alive) == 3
    assert {pod.version for pod in made.pods.alive} == {1}


def test_a_crash_during_a_rollout_is_replaced_in_its_version() -> None:
    _, data, _, radius = rolled(
        RollingUpdate(max_surge=1, max_unavailable=0),
        cluster=Cluster(faults=Faults(crash_at_s=(650, 800, 930))),
    )
    assert radius.outcome == "completed"
    assert (data.outcome != "unfinished").all()


def test_a_version_that_crashes_takes_a_rolling_update_down_and_is_stopped_by_a_canary() -> None:
    """Its pods live for 36 s on average. A pod that is ready for a moment lets an old one go, as with
    a minReadySeconds of 0."""
    surge_one = RollingUpdate(max_surge=1, max_unavailable=0)
    fields = {"crashes_per_pod_hour": 100.0, "rate_rps": 8.0}
    _, data, timeline, everybody = rolled(surge_one, **fields)
    assert (data.outcome != "unfinished").all()
    assert timeline["replicas_ready"].iloc[-20:].mean() < 3
    made, data, timeline, few = rolled(Canary(share=0.2, steps=(), analysis=QUICK), **fields)
    assert few.outcome == "rolled back"
    assert timeline["replicas_ready"].min() == 4
    assert {pod.version for pod in made.pods.alive} == {0}
    assert 3 * few.touched < everybody.touched
    assert 0 < few.failed < everybody.failed


def test_what_was_held_beyond_the_wanted_by_hand() -> None:
    held = [(0.0, 50.0), (10.0, 30.0), (20.0, np.inf)]
    wanted = [(0.0, 1), (40.0, 2)]
    # Beyond: 1 in [10, 20), 2 in [20, 30), 1 in [30, 40), none after.
    assert held_beyond_s(held, wanted, 0, 100) == pytest.approx(40)
    assert held_beyond_s(held, wanted, 15, 25) == pytest.approx(5 + 10)
    assert held_beyond_s([], wanted, 0, 100) == 0
