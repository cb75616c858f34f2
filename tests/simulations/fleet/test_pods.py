"""The life of a pod: start, drain, crash, and what becomes of its requests."""

from __future__ import annotations

import numpy as np
import pytest

from serving.errors import InputError
from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from simulations.fleet import Activation, Cluster, Faults, NodePool, ReadinessProbe, Termination
from simulations.fleet.faults import crash_loop
from simulations.latency import ColdStart
from simulations.traffic import Schedule
from tests.simulations.fleet.made import Script, even, fleet, when
from tests.simulations.models import plan

AUTOSCALED = plan(hpa=HpaSpec(max_replicas=9, metrics=(pods_metric(REQUESTS_RUNNING, 5),)))
PARTS = ColdStart(
    schedule_s=2,
    pull_s=30,
    start_s=100,
    load_s=40,
    load_cached_s=5,
    compile_s=30,
    compile_saved_s=10,
    capture_s=8,
    warmup_s=2,
    source="made up",
)


def test_parts_of_a_start_sum_to_it_and_caches_shorten_it() -> None:
    cold = PARTS.starting(weights_cached=False, compile_saved=False)
    assert cold == {"process": 20, "load": 40, "compile": 30, "capture": 8, "warm-up": 2}
    assert sum(PARTS.starting(weights_cached=True, compile_saved=False).values()) == 65
    assert sum(PARTS.starting(weights_cached=True, compile_saved=True).values()) == 45
    whole = ColdStart(start_s=41, source="measured")
    assert whole.starting(weights_cached=True, compile_saved=True) == {"process": 41}


def test_parts_that_exceed_the_start_are_refused() -> None:
    with pytest.raises(ValueError, match=r"start_s\(=10.0\) must be >= its parts, which are 11 s"):
        ColdStart(start_s=10, load_s=11, source="made up")


@pytest.mark.parametrize(
    ("probe", "answers_s", "ready_s"),
    [
        (ReadinessProbe(), 88, 90),
        (ReadinessProbe(), 90, 90),
        (ReadinessProbe(), 0, 0),
        (ReadinessProbe(success_threshold=3), 88, 110),
        (ReadinessProbe(initial_delay_s=60, period_s=20), 30, 60),
        (ReadinessProbe(initial_delay_s=60, period_s=20), 61, 80),
    ],
)
def test_a_probe_notices_at_its_period(
    probe: ReadinessProbe, answers_s: float, ready_s: float
) -> None:
    assert probe.ready_after_s(answers_s) == pytest.approx(ready_s)


def test_a_new_pod_is_ready_after_its_cold_start_and_the_probe() -> None:
    made, _, timeline = fleet(
        even(1, 900),
        a_plan=AUTOSCALED,
        controller=Script((0, 1), (300, 2)),
        cluster=Cluster(readiness=ReadinessProbe(period_s=25)),
        duration_s=900,
    )
    up_s = float(timeline["t_s"][timeline["replicas_desired"] == 2].min())
    (second_s,) = [t for t in when(made, "ready") if t > 0]
    # 2 s and 30 s to the start of the container, probes at 0, 25 ... 100 s after it.
    assert second_s == pytest.approx(up_s + 132, abs=30)
    assert made.pods.alive[1].ready_s - made.pods.alive[1].created_s == pytest.approx(132)


def test_the_second_pod_of_a_node_starts_from_its_caches() -> None:
    made, _, _ = fleet(
        even(1, 1800),
        a_plan=AUTOSCALED,
        controller=Script((0, 0), (100, 1), (600, 2), (1200, 3)),
        cluster=Cluster(
            initial_replicas=0, nodes=NodePool(gpus_per_node=2, initial_nodes=2, idle_s=1e6)
        ),
        cold=PARTS,
        duration_s=1800,
    )
    waited = [pod.ready_s - pod.created_s for pod in made.pods.alive]
    assert waited == pytest.approx([132, 2 + 45, 132])
    assert [pod.node.number for pod in made.pods.alive if pod.node] == [0, 0, 1]


def test_pods_that_are_there_at_the_start_have_warmed_their_node() -> None:
    made, _, _ = fleet(
        even(1, 600),
        a_plan=AUTOSCALED,
        controller=Script((0, 1), (100, 2)),
        cluster=Cluster(nodes=NodePool(gpus_per_node=2)),
        cold=PARTS,
        duration_s=600,
    )
    assert made.pods.alive[1].ready_s - made.pods.alive[1].created_s == pytest.approx(2 + 45)


def test_a_deleted_pod_leaves_the_endpoints_at_once_and_finishes_what_it_holds() -> None:
    """Answers of 200 s; the pod goes when its last one has been sent."""
    made, data, _ = fleet(
        even(0.02, 900, tokens=20_000),
        a_plan=AUTOSCALED,
        controller=Script((0, 2), (500, 1)),
        cluster=Cluster(initial_replicas=2),
        duration_s=900,
    )
    (deleted_s,) = when(made, "deleted")
    (gone_s,) = when(made, "gone")
    on_it = np.flatnonzero(data.replica == 1)
    sent_s = data.requests["arrived_at_s"].to_numpy()[on_it]
    assert sent_s.max() < deleted_s
    assert gone_s == pytest.approx(data.end_s[on_it].max(), abs=1.0)
    assert (data.outcome[on_it] == "answered").all()


@pytest.mark.parametrize(
    ("rule", "stays_s", "failed"),
    [
        (Termination(pre_stop_s=0, grace_s=None), 1000, 0),
        (Termination(pre_stop_s=5, grace_s=60), 60, 1),
        (Termination(pre_stop_s=70, grace_s=60), 60, 1),
        (Termination(pre_stop_s=1500, grace_s=None), 1500, 0),
    ],
)
def test_grace_cuts_and_pre_stop_holds(rule: Termination, stays_s: float, failed: int) -> None:
    """The second of two requests of 1000 s is on the second pod, which is deleted at its first sync."""
    schedule = Schedule(np.array([0.0, 1e-3]), np.full(2, 10), np.full(2, 100_000))
    made, data, _ = fleet(
        schedule,
        a_plan=AUTOSCALED,
        controller=Script((0, 1)),
        cluster=Cluster(initial_replicas=2, termination=rule),
        duration_s=2000,
    )
    (deleted_s,) = when(made, "deleted")
    (gone_s,) = when(made, "gone")
    expected_s = 1000 - deleted_s if stays_s == 1000 else stays_s
    assert gone_s - deleted_s == pytest.approx(expected_s, abs=1.1)
    assert int((data.outcome == "failed").sum()) == failed


def test_a_pod_that_is_not_ready_is_gone_at_once() -> None:
    made, _, _ = fleet(
        even(1, 600),
        a_plan=AUTOSCALED,
        controller=Script((0, 1), (300, 3), (330, 1)),
        duration_s=600,
    )
    created_s = [pod.created_s for pod in made.pods.gone]
    assert len(created_s) == 2
    for pod in made.pods.gone:
        assert 0 < pod.gone_s - pod.created_s <= 45
        assert pod.served_s(600) == 0


def test_crash_loop_back_off_is_the_kubelets() -> None:
    waits, backoff_s, restarted_s, now_s = [], 0.0, -np.inf, 0.0
    for _ in range(9):
        wait_s, backoff_s = crash_loop(backoff_s, restarted_s, now_s)
        waits.append(wait_s)
        restarted_s = now_s + wait_s
        now_s = restarted_s + 100  # runs for 100 s each time
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300, 300]
    assert crash_loop(backoff_s, restarted_s, restarted_s + 600)[0] == 300
    assert crash_loop(backoff_s, restarted_s, restarted_s + 601) == (0, 10)


def test_a_crash_fails_what_the_pod_holds_and_the_container_starts_again_on_its_node() -> None:
    made, data, _ = fleet(
        even(2, 1000, tokens=300),
        cluster=Cluster(faults=Faults(crash_at_s=(300, 430, 560))),
        duration_s=1000,
        slots=8,
    )
    assert when(made, "crash") == [300, 430, 560]
    # Each time the pod that has been ready longest: 0, then 1, then 0 again, 10 s later than before.
    events = made.events()
    assert list(events.loc[events["event"] == "crash", "pod"]) == [0, 1, 0]
    assert when(made, "ready")[2:] == [300 + 88, 430 + 88, 560 + 10 + 88]
    failed_s = data.end_s[data.outcome == "failed"]
    assert set(failed_s) == {300, 430, 560}
    # Requests of 3 s at 2 rps over two pods: three in each.
    assert [int((failed_s == t).sum()) for t in (300, 430, 560)] == [3, 3, 3]
    assert (data.outcome != "unfinished").all()
    assert len(made.pods.gone) == 0


def test_an_oom_kill_takes_the_fullest_and_a_condition_kills_whoever_meets_it() -> None:
    made, _, _ = fleet(
        even(1, 600), cluster=Cluster(faults=Faults(oom_at_s=(300,))), duration_s=600
    )
    assert when(made, "OOM") == [300]
    crowded = even(1, 600, tokens=700)  # 7 s each at 1 rps: all 8 slots are soon in use
    made, _, _ = fleet(
        crowded, cluster=Cluster(faults=Faults(oom_kv_usage=1.0, oom_look_s=10)), duration_s=600
    )
    times = when(made, "OOM")
    assert times
    assert all(t % 10 == 0 for t in times)


def test_crashes_at_a_rate_are_poisson() -> None:
    """Ten pods for 10 h at 2 an hour: 200 less what they are down, 88 s a crash and back-off."""
    made, _, _ = fleet(
        even(0.01, 36_000),
        a_plan=plan(replicas=10),
        cluster=Cluster(faults=Faults(crashes_per_pod_hour=2)),
        duration_s=36_000,
    )
    up_hours = made.served_s() / 3600
    crashes = len(when(made, "crash"))
    assert crashes == pytest.approx(2 * up_hours, abs=3 * np.sqrt(2 * up_hours))
    assert up_hours < 98


def test_scale_to_zero_and_back_is_kedas() -> None:
    """Traffic until 600 s and from 2000 s on: gone after the cooldown, back after a poll."""
    times = np.concatenate([np.arange(0.5, 600, 1), np.arange(2000.5, 3000, 1)])
    schedule = Schedule(times, np.full(len(times), 50), np.full(len(times), 100))
    made, data, _ = fleet(
        schedule,
        a_plan=AUTOSCALED,
        controller=Script((0, 1), wakes=False),
        cluster=Cluster(activation=Activation()),
        duration_s=3000,
    )
    (deleted_s,) = when(made, "deleted")
    assert 600 + 300 < deleted_s <= 600 + 300 + 60 + 1
    woken_s = [pod.created_s for pod in made.pods.alive]
    assert len(woken_s) == 1
    assert 2000 < woken_s[0] <= 2000.5 + 30
    first_s = data.end_s[times > 2000].min()
    assert first_s == pytest.approx(woken_s[0] + 120 + 1)
    assert (data.outcome == "answered").all()
    assert made.gpu_held_s() < 3000 - 1000


def test_activation_needs_an_autoscaler() -> None:
    with pytest.raises(InputError, match="activation needs an autoscaler"):
        fleet(even(1, 10), cluster=Cluster(activation=Activation()), duration_s=10)
