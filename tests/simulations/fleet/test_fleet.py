"""Pods, routing and metrics around the engine, on static fleets and under the autoscaler."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from serving.hpa import (
    REQUESTS_RUNNING,
    HpaSpec,
    pods_metric,
)
from serving.plan import Plan
from simulations.autoscaler import HpaController
from simulations.control import Observation
from simulations.engine import DataPlane, SchedulerOptions, request_frame, simulate_replica
from simulations.fleet import Cluster, Fleet, Termination
from simulations.latency import LatencyModel
from simulations.metrics import Pipeline
from simulations.traffic import Schedule
from tests.simulations.fleet.made import Script, even, fleet
from tests.simulations.models import ENGINE, latency, plan, workload

DURATION_S = 1800.0


def run(
    a_plan: Plan,
    schedule: Schedule,
    model: LatencyModel | None = None,
    cluster: Cluster | None = None,
    duration_s: float = DURATION_S,
) -> tuple[Fleet, pd.DataFrame, pd.DataFrame]:
    fleet = Fleet(
        a_plan,
        schedule,
        model or latency(),
        cluster or Cluster(),
        HpaController(a_plan.hpa) if a_plan.hpa else None,
        duration_s=duration_s,
        rng=np.random.default_rng(0),
    )
    timeline = fleet.run()
    return fleet, request_frame(fleet.data.requests), timeline


def step_in_load(low_rps: float, high_rps: float, at_s: float, until_s: float) -> Schedule:
    """Even arrivals of equal requests, low, then high in [at, until), then low again."""
    times = np.concatenate(
        [
            np.arange(0, at_s, 1 / low_rps),
            np.arange(at_s, until_s, 1 / high_rps),
            np.arange(until_s, 3600, 1 / low_rps),
        ]
    )
    return Schedule(times, np.full(len(times), 200), np.full(len(times), 100))


def autoscaled(metric: str, target: float, **changes: object) -> Plan:
    spec = HpaSpec(max_replicas=4, metrics=(pods_metric(metric, target),))
    return plan(hpa=spec, **changes)


def test_a_fleet_of_one_is_the_replica() -> None:
    """The same engine, cut into pieces by control events, gives the same requests."""
    schedule = workload(rate_rps=20, duration_s=DURATION_S).schedule()
    _, found, _ = run(plan(replicas=1), schedule)
    alone = simulate_replica(schedule, latency(), ENGINE)
    pd.testing.assert_frame_equal(found, alone, rtol=1e-9, atol=1e-7)


def test_routing_is_least_outstanding() -> None:
    """Against a loop over replicas that are simulated alone on what they were sent."""
    schedule = workload(rate_rps=40, duration_s=60).schedule()
    data = DataPlane(schedule, latency(), SchedulerOptions.of(ENGINE, latency()))
    rows = [data.add() for _ in range(3)]
    data.advance(1e6, rows)
    found = request_frame(data.requests)
    # Rebuild the routing from the outcomes alone: assign greedily by outstanding requests.
    assigned: list[list[int]] = [[], [], []]
    chosen = 0
    end_s = found["end_s"].to_numpy()
    for i, t in enumerate(schedule.arrived_at_s):
        open_requests = [sum(end_s[j] > t for j in part) for part in assigned]
        order = [(chosen + k) % 3 for k in (1, 2, 3)]
        chosen = min(order, key=lambda r: open_requests[r])
        assigned[chosen].append(i)
    for part in assigned:
        alone = simulate_replica(
            Schedule(*(schedule.frame()[name].to_numpy()[part] for name in schedule.frame())),
            latency(),
            ENGINE,
        )
        np.testing.assert_allclose(found["end_s"].iloc[part], alone["end_s"], rtol=1e-9)
    assert found["end_s"].notna().all()


def test_a_step_in_load_scales_up_after_the_cold_start_and_down_after_the_window() -> None:
    """Worked scenario: 2 rps need one replica at 5 running per pod, 20 rps need three or four.

    One request runs about 0.66 s, so that 20 rps keep 13 to 14 running: ceil(13.5 / 5) = 3. The step
    at 600 s is seen within a scrape, the delay and a sync (35 s); pods are ready a cold start (120 s)
    later. The step down at 1800 s is followed after the stabilization window of 300 s.
    """
    fleet, found, timeline = run(
        autoscaled(REQUESTS_RUNNING, 5),
        step_in_load(2, 20, 600, 1800),
        latency(per_seq_s=0.0),
        duration_s=3600,
    )
    t_s = timeline["t_s"]
    assert (timeline["replicas_desired"][t_s < 600] == 1).all()
    up_s = t_s[timeline["replicas_desired"] > 1].min()
    assert 600 < up_s <= 600 + 15 + 5 + 15 + 15
    ready_s = t_s[timeline["replicas_ready"] > 1].min()
    assert 120 - 15 <= ready_s - up_s <= 120 + 15
    steady = timeline[(t_s > 1000) & (t_s < 1800)]
    assert set(steady["replicas_ready"]) == {3}
    down_s = t_s[(timeline["replicas_desired"] < 3) & (t_s > 1800)].min()
    assert 1800 + 300 < down_s <= 1800 + 300 + 15 + 5 + 15 + 15
    assert timeline["replicas_desired"].iloc[-1] == 1
    assert found["end_s"].notna().all()
    # Every pod holds its GPU from after its scheduling (2 s) to its end, the first one all day.
    held_s = fleet.gpu_held_s()
    assert 3600 + 2 * (down_s - up_s - 60) < held_s < 3600 + 2 * (down_s - up_s + 60)


def test_warm_spares_hide_the_cold_start_and_cost_gpus() -> None:
    load = step_in_load(2, 20, 600, 1800)
    bare, _, without = run(autoscaled(REQUESTS_RUNNING, 5), load, duration_s=3600)
    spared, found, with_spares = run(
        autoscaled(REQUESTS_RUNNING, 5, warm_spares=2), load, duration_s=3600
    )
    assert (with_spares["replicas_ready"][with_spares["t_s"] < 600] == 3).all()
    assert spared.gpu_held_s() == pytest.approx(bare.gpu_held_s() + 2 * 3600, rel=0.05)
    during = found[(found["arrived_at_s"] > 640) & (found["arrived_at_s"] < 700)]
    assert during["tpot_s"].max() < 0.0075
    assert with_spares["replicas_desired"].max() == without["replicas_desired"].max()


def test_requests_wait_at_the_gateway_until_a_pod_is_ready() -> None:
    spec = HpaSpec(min_replicas=1, max_replicas=2, metrics=(pods_metric(REQUESTS_RUNNING, 5),))
    _, found, timeline = run(
        plan(hpa=spec), step_in_load(1, 2, 600, 900), cluster=Cluster(initial_replicas=0)
    )
    # At 0 replicas the HPA is off (ScalingDisabled), so nobody is served and nothing is lost.
    assert found["end_s"].isna().all()
    assert timeline["requests_waiting"].max() > 1000


def test_no_more_pods_than_gpus() -> None:
    fleet, _, timeline = run(
        autoscaled(REQUESTS_RUNNING, 1, gpus_per_replica=2),
        step_in_load(20, 20, 600, 1800),
        cluster=Cluster(max_gpus=5),
    )
    assert timeline["replicas_desired"].max() == 4
    assert timeline["replicas_ready"].max() == 2
    assert fleet.gpu_held_s() <= 4 * DURATION_S


def test_drained_pods_finish_what_they_hold() -> None:
    """Long answers at the step down: every request is answered although pods are taken away."""
    times = np.concatenate([np.arange(0, 900, 0.2), np.arange(900, 3600, 20)])
    long = Schedule(times, np.full(len(times), 100), np.full(len(times), 3000))
    fleet, found, timeline = run(autoscaled(REQUESTS_RUNNING, 30), long, duration_s=3600)
    assert timeline["replicas_ready"].max() > 1
    assert len(fleet.pods.gone) >= 1
    assert found["end_s"].notna().all()


def test_gpu_utilisation_is_busy_with_anything_at_all() -> None:
    """A single stream of requests keeps the device busy: the signal says full at 1 of 64."""
    back_to_back = np.arange(0, DURATION_S, 0.6)
    one_at_a_time = Schedule(
        back_to_back, np.full(len(back_to_back), 100), np.full(len(back_to_back), 100)
    )
    _, _, timeline = run(plan(replicas=1), one_at_a_time)
    steady = timeline[timeline["t_s"] > 60]
    assert steady["requests_running"].max() <= 2
    # 100 steps of 5.5 ms in 0.6 s, 0.4 ms between steps; the prefill step lasts a little longer.
    assert steady["gpu_utilisation"].mean() == pytest.approx((99 * 5.5e-3 + 6.9e-3) / 0.6, rel=0.03)


class Notes(Script):
    """Keeps what the autoscaler was shown."""

    def __init__(self, *asks: tuple[float, int]) -> None:
        super().__init__(*asks)
        self.seen: list[tuple[Observation, dict[int, float], float | None]] = []

    def desired(self, seen: Observation) -> int:
        per_pod = seen.per_pod(REQUESTS_RUNNING)
        self.seen.append((seen, per_pod, seen.total(REQUESTS_RUNNING)))
        return super().desired(seen)


def test_pods_that_are_being_deleted_are_listed_and_not_counted() -> None:
    """As the API server has them: the selector matches them, status.replicas leaves them out."""
    notes = Notes((0, 3), (600, 1))
    cluster = Cluster(initial_replicas=3, termination=Termination(pre_stop_s=100, grace_s=200))
    hpa = HpaSpec(max_replicas=3, metrics=(pods_metric(REQUESTS_RUNNING, 1),))
    fleet(even(5, 900), cluster=cluster, controller=notes, a_plan=plan(hpa=hpa), duration_s=900)
    for seen, per_pod, total in notes.seen:
        gone = [pod for pod in seen.pods if pod.deleted]
        draining = 620 < seen.now_s < 690
        assert len(gone) == 2 if draining else not gone or 600 <= seen.now_s <= 720
        assert seen.status_replicas == len(seen.pods) - len(gone)
        if draining:
            assert all(pod.ready for pod in gone)
            assert len(per_pod) == 3
        if per_pod:
            assert total == sum(per_pod.values())


def test_pods_may_be_scraped_at_offsets() -> None:
    """Two of three slots later the third pod has no sample yet; the timeline has all of them."""
    notes = Notes((0, 3))
    cluster = Cluster(
        initial_replicas=3, sync_period_s=1, metrics=Pipeline(scrape_slots=3, query_age_s=0)
    )
    hpa = HpaSpec(max_replicas=3, metrics=(pods_metric(REQUESTS_RUNNING, 1),))
    _, _, timeline = fleet(
        even(5, 300), cluster=cluster, controller=notes, a_plan=plan(hpa=hpa), duration_s=300
    )
    counts = [len(per_pod) for _, per_pod, _ in notes.seen]
    assert set(counts) >= {1, 2, 3}
    assert counts == sorted(counts)
    assert np.diff(timeline["t_s"]) == pytest.approx(15)
