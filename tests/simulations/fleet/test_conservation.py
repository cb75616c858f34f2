"""Whatever goes wrong: every request ends once, runs repeat, and ties have an order."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from simulations.engine import request_frame
from simulations.fleet import (
    Analysis,
    BlueGreen,
    Canary,
    Cluster,
    Faults,
    Fleet,
    NodePool,
    ReadinessProbe,
    Recreate,
    Release,
    RollingUpdate,
    Termination,
)
from simulations.fleet.streams import Streams
from simulations.traffic import Schedule
from tests.simulations.fleet.hand_plane import HandPlane
from tests.simulations.fleet.made import COLD, Script, even, fleet, when
from tests.simulations.models import latency, plan, workload

AUTOSCALED = plan(hpa=HpaSpec(max_replicas=9, metrics=(pods_metric(REQUESTS_RUNNING, 5),)))
LASTS_S = 1500.0
WATCHED = Analysis(window_s=120, look_s=60, max_windows=2, min_requests=20)

times = st.lists(st.floats(0, LASTS_S), max_size=4).map(tuple)
faults = st.builds(
    Faults,
    crashes_per_pod_hour=st.sampled_from([0.0, 3.0, 30.0]),
    crash_at_s=times,
    oom_at_s=times,
    oom_kv_usage=st.sampled_from([None, 1.0]),
)
pools = st.builds(
    NodePool,
    gpus_per_node=st.integers(1, 4),
    max_nodes=st.sampled_from([None, 2, 4]),
    provision_s=st.sampled_from([0.0, 100.0]),
    idle_s=st.sampled_from([0.0, 200.0]),
    losses_per_node_hour=st.sampled_from([0.0, 3.0]),
    loss_at_s=times,
    reclaims_per_node_hour=st.sampled_from([0.0, 3.0]),
    reclaim_at_s=times,
    notice_s=st.sampled_from([0.0, 60.0]),
)
clusters = st.builds(
    Cluster,
    nodes=st.one_of(st.none(), pools),
    faults=faults,
    readiness=st.sampled_from([None, ReadinessProbe()]),
    termination=st.sampled_from(
        [Termination(pre_stop_s=0, grace_s=None), Termination(), Termination(grace_s=0)]
    ),
    initial_replicas=st.integers(0, 3),
    grace_s=st.just(1e5),
)
releases = st.builds(
    Release,
    at_s=st.floats(0, LASTS_S),
    strategy=st.sampled_from(
        [
            Recreate(),
            RollingUpdate(),
            RollingUpdate(max_surge=0, max_unavailable=1),
            BlueGreen(analysis=WATCHED),
            Canary(share=0.1, steps=(0.5,), analysis=WATCHED),
        ]
    ),
    error_share=st.sampled_from([0.0, 0.1, 1.0]),
    slowdown=st.sampled_from([1.0, 3.0]),
    progress_deadline_s=st.sampled_from([100.0, 600.0]),
)
asks = st.lists(st.tuples(st.floats(0, LASTS_S), st.integers(0, 5)), max_size=5).map(
    lambda found: ((0.0, 2), *sorted(found))
)


@settings(max_examples=60, deadline=None)
@given(clusters, st.one_of(st.none(), releases), asks, st.integers(0, 3), st.integers(0, 5))
def test_every_request_ends_once(
    cluster: Cluster,
    release: Release | None,
    asked: tuple[tuple[float, int], ...],
    spares: int,
    seed: int,
) -> None:
    """The plane asserts that none ends twice; here that none is lost, and why each ended."""
    made, data, _ = fleet(
        even(2, LASTS_S, tokens=300),
        a_plan=AUTOSCALED.model_copy(update={"warm_spares": spares}),
        cluster=cluster,
        controller=Script(*asked),
        release=release,
        duration_s=LASTS_S,
        seed=seed,
    )
    readings = [r for found in made.pods.retired.values() for r in found]
    ended = pd.Series(data.outcome).value_counts()
    assert set(ended.index) <= {"answered", "failed", "unfinished"}
    # Who is left waits at the gateway, since nobody serves; all that were taken have ended.
    assert ended.get("unfinished", 0) == data.at_gateway
    assert (data.taken[data.outcome != "unfinished"] == 1).all()
    died = sum(made.pods.lost.values())
    assert ended.get("failed", 0) == died + sum(r.failed for r in readings)
    if release is None or release.error_share == 0:
        assert ended.get("failed", 0) == died
    # A pod is in one place, and its time is in order.
    pods = made.pods.alive + made.pods.gone
    assert len({pod.number for pod in pods}) == len(pods)
    for pod in made.pods.gone:
        assert pod.row == -1
        assert pod.created_s <= pod.gone_s
        assert pod.bound_s == np.inf or pod.created_s <= pod.bound_s <= pod.gone_s
    held_s = made.gpu_held_s()
    assert 0 <= made.served_s() <= held_s + 1e-6
    in_nodes = sum(len(node.pods) for node in made.nodes.nodes)
    assert in_nodes == sum(pod.node is not None and pod.node.up for pod in made.pods.alive)


@settings(max_examples=15, deadline=None)
@given(clusters, st.one_of(st.none(), releases), asks, st.integers(0, 5))
def test_the_engine_twin_loses_none_either(
    cluster: Cluster,
    release: Release | None,
    asked: tuple[tuple[float, int], ...],
    seed: int,
) -> None:
    made = Fleet(
        AUTOSCALED,
        workload(rate_rps=5, duration_s=LASTS_S, seed=seed).schedule(),
        latency(cold_start=COLD),
        cluster,
        Script(*asked),
        duration_s=LASTS_S,
        rng=np.random.default_rng(seed),
        release=release,
    )
    made.run()
    ended = request_frame(made.data.requests)["outcome"].astype(str).value_counts()
    assert set(ended.index) <= {"answered", "failed", "unfinished"}
    assert ended.get("unfinished", 0) == made.data.at_gateway
    readings = [r for found in made.pods.retired.values() for r in found]
    died = sum(made.pods.lost.values())
    # The last readings of those that are left were taken before the grace.
    errors = ended.get("failed", 0) - died
    assert errors >= sum(r.failed for r in readings)
    if release is None or release.error_share == 0:
        assert errors == 0


def troubled(seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """A run in which every source of randomness is in use."""
    made, data, timeline = fleet(
        even(2, LASTS_S),
        a_plan=AUTOSCALED,
        controller=Script((0, 2), (500, 4), (1000, 3)),
        cluster=Cluster(
            initial_replicas=2,
            faults=Faults(crashes_per_pod_hour=10),
            nodes=NodePool(
                gpus_per_node=2, provision_s=60, losses_per_node_hour=2, reclaims_per_node_hour=2
            ),
        ),
        release=Release(at_s=700, strategy=RollingUpdate(), error_share=0.1),
        duration_s=LASTS_S,
        seed=seed,
    )
    return data.requests, made.events(), timeline


def test_runs_repeat_in_sequence_and_in_parallel() -> None:
    first, again, other = troubled(1), troubled(1), troubled(2)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        apart = list(pool.map(troubled, (2, 1)))
    for found in (again, apart[1]):
        for mine, theirs in zip(first, found, strict=True):
            pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    pd.testing.assert_frame_equal(other[1], apart[0][1], check_exact=True)
    assert not first[1].equals(other[1])
    assert {"crash", "node lost"} <= set(first[1]["event"])


def test_a_stream_depends_on_its_source_alone() -> None:
    """Crashes leave node losses where they were, and a rate scales its own waits."""
    streams = Streams(np.random.default_rng(7))
    losses = [streams.wait_s(0.5, "node loss", n) for n in range(5)]
    again = Streams(np.random.default_rng(7))
    [again.wait_s(9.0, "crash", n, 0) for n in range(50)]
    assert [again.wait_s(0.5, "node loss", n) for n in range(5)] == losses
    assert [again.wait_s(1.0, "node loss", n) for n in range(5)] == [s / 2 for s in losses]
    assert streams.wait_s(0.0, "node loss", 0) == np.inf
    waits = [streams.wait_s(1.0, "crash", n, 0) for n in range(2000)]
    assert np.mean(waits) == pytest.approx(3600, rel=0.1)


def test_the_phases_do_not_depend_on_the_cluster() -> None:
    """Plans are compared pairwise: faults and nodes leave the control loops where they were."""
    runs: list[dict[str, Any]] = [{}, {"cluster": Cluster(faults=Faults(crash_at_s=(99,)))}]
    first, second = (fleet(even(1, 300), duration_s=300, **changes)[2]["t_s"] for changes in runs)
    pd.testing.assert_series_equal(first, second)


def test_a_pod_dies_once_however_many_things_happen_to_it_at_a_time() -> None:
    at_s = (300.0, 300.0)
    made, data, _ = fleet(
        even(2, 900, tokens=300),
        cluster=Cluster(faults=Faults(crash_at_s=at_s, oom_at_s=at_s)),
        duration_s=900,
        slots=8,
    )
    # Each crash finds another pod that is ready, and the kills find none.
    events = made.events()
    struck = events[events["event"].isin(["crash", "OOM"])]
    assert list(struck["pod"]) == [0, 1]
    assert list(struck["t_s"]) == [300, 300]
    assert (data.outcome != "unfinished").all()
    pool = NodePool(gpus_per_node=2, initial_nodes=2, loss_at_s=at_s)
    made, data, _ = fleet(
        even(2, 2000, tokens=300),
        cluster=Cluster(faults=Faults(crash_at_s=at_s, oom_at_s=at_s), nodes=pool),
        duration_s=2000,
    )
    assert len(when(made, "node lost")) <= 2
    assert len(made.pods.alive) == 2
    assert (data.outcome != "unfinished").all()


def test_a_request_that_arrives_with_a_control_event_comes_after_it() -> None:
    """Sent at the very time of a crash it goes to the other pod, and of a start to the new one."""
    sent_s = np.array([299.0, 300.0])
    schedule = Schedule(sent_s, np.full(2, 10), np.full(2, 1000))
    data = fleet(schedule, cluster=Cluster(faults=Faults(crash_at_s=(300,))), duration_s=400)[1]
    assert list(data.outcome) == ["failed", "answered"]
    assert list(data.replica) == [0, 1]
    late = Schedule(np.array([150.0]), np.full(1, 10), np.full(1, 1000))
    _, data, _ = fleet(
        late,
        a_plan=AUTOSCALED,
        cluster=Cluster(initial_replicas=0),
        controller=Script((0, 1)),
        duration_s=400,
    )
    assert isinstance(data, HandPlane)
    assert data.outcome[0] == "answered"
