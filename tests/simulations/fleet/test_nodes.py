"""Machines: packing, provisioning, removal, loss and reclaim."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import Plan
from simulations.fleet import Cluster, Fleet, NodePool
from tests.simulations.fleet.made import Script, even, fleet, when
from tests.simulations.models import plan

HPA = HpaSpec(max_replicas=40, metrics=(pods_metric(REQUESTS_RUNNING, 5),))


def autoscaled(gpus_per_replica: int = 1) -> Plan:
    return plan(hpa=HPA, gpus_per_replica=gpus_per_replica)


def on_nodes(made: Fleet) -> list[int]:
    """The node of each pod that is left, by pod."""
    return [pod.node.number for pod in sorted(made.pods.alive, key=lambda p: p.number) if pod.node]


@pytest.mark.parametrize(
    ("packing", "nodes"),
    [("most_allocated", [0, 0, 0, 1, 1]), ("least_allocated", [0, 1, 2, 0, 1])],
)
def test_pods_are_packed_or_spread(packing: str, nodes: list[int]) -> None:
    pool = NodePool(gpus_per_node=6, initial_nodes=3, packing=packing)
    made, _, _ = fleet(
        even(1, 60),
        a_plan=plan(replicas=5, gpus_per_replica=2),
        cluster=Cluster(nodes=pool),
        duration_s=60,
    )
    assert on_nodes(made) == nodes


def test_two_halves_are_not_a_whole() -> None:
    """Nodes of 8 hold two pods of 3; the two GPUs left on each make no third."""
    pool = NodePool(gpus_per_node=8, initial_nodes=2, max_nodes=2)
    _, _, timeline = fleet(
        even(1, 600),
        a_plan=autoscaled(gpus_per_replica=3),
        controller=Script((0, 5)),
        cluster=Cluster(nodes=pool, initial_replicas=1),
        duration_s=600,
    )
    assert timeline["replicas_ready"].max() == 4
    assert timeline["replicas_desired"].iloc[-1] == 5


def test_a_pod_larger_than_a_node_is_refused() -> None:
    with pytest.raises(InputError, match=r"gpus_per_replica\(=8\) must be <= gpus_per_node\(=4\)"):
        fleet(
            even(1, 10),
            a_plan=plan(replicas=1, gpus_per_replica=8),
            cluster=Cluster(nodes=NodePool(gpus_per_node=4)),
        )


def test_a_limit_on_gpus_and_nodes_are_not_both_given() -> None:
    with pytest.raises(ValueError, match="max_gpus"):
        Cluster(max_gpus=8, nodes=NodePool())


def test_pending_pods_order_nodes_which_go_when_they_have_been_empty() -> None:
    """One node of 2; four replicas from 300 s to 1000 s need a second one, which is then removed."""
    pool = NodePool(gpus_per_node=2, provision_s=180, scan_s=10, idle_s=600)
    made, _, timeline = fleet(
        even(1, 3600),
        a_plan=autoscaled(),
        controller=Script((0, 1), (300, 4), (1000, 1)),
        cluster=Cluster(nodes=pool),
    )
    up_s = timeline["t_s"][timeline["replicas_desired"] == 4].min()
    ready = np.array(when(made, "ready"))
    scaled_s = min(pod.created_s for pod in made.pods.gone)
    assert abs(up_s - scaled_s) <= 15
    # The second replica fits, where the image is. The others find no node 2 s later, and get one
    # 10 + 180 s after that.
    assert ready[1:] == pytest.approx([scaled_s + 90, *2 * [scaled_s + 2 + 10 + 180 + 118]])
    (second,) = made.nodes.gone
    assert second.ordered_s == pytest.approx(scaled_s + 12)
    down_s = max(pod.gone_s for pod in made.pods.gone if pod.node is second)
    assert second.gone_s == pytest.approx(down_s + 600)
    # Nodes are paid whole, from their order to their end.
    paid_s = 2 * 3600 + 2 * (second.gone_s - second.ordered_s)
    assert made.gpu_held_s() == pytest.approx(paid_s)


def test_no_more_nodes_than_the_pool_may_have_and_no_fewer_than_its_least() -> None:
    pool = NodePool(gpus_per_node=2, min_nodes=1, max_nodes=2, provision_s=60, idle_s=60)
    made, _, timeline = fleet(
        even(1, 1800),
        a_plan=autoscaled(),
        controller=Script((0, 1), (100, 9), (900, 0)),
        cluster=Cluster(nodes=pool),
        duration_s=1800,
    )
    assert timeline["replicas_ready"].max() == 4
    assert len(made.nodes.nodes) == 1
    assert len(made.nodes.gone) == 1


def test_a_node_loss_fails_requests_at_once_and_is_mended_after_eviction() -> None:
    pool = NodePool(
        gpus_per_node=1, initial_nodes=2, loss_at_s=(600,), unreachable_s=50, evict_s=300
    )
    made, data, _ = fleet(even(1, 1800, tokens=300), cluster=Cluster(nodes=pool), duration_s=1800)
    assert when(made, "node lost") == [600]
    failed = data.outcome == "failed"
    # 3 s each at 1 rps over two pods: one or two on each.
    assert 1 <= failed.sum() <= 2
    assert (data.end_s[failed] == 600).all()
    assert data.replica[data.requests["arrived_at_s"] > 600.0][0] == 1
    new = made.pods.alive[-1]
    assert new.created_s == 600 + 50 + 300
    # 2 s to be scheduled, 10 s to the order, 180 s to the node, then image and start.
    assert new.ready_s == pytest.approx(950 + 2 + 10 + 180 + 118)
    assert (data.outcome != "unfinished").all()


def test_the_api_server_learns_of_a_loss_late() -> None:
    seen: list[tuple[float, int, int]] = []

    class Spy(Script):
        def desired(self, observation):  # type: ignore[no-untyped-def]
            ready = sum(pod.ready for pod in observation.pods)
            seen.append((observation.now_s, len(observation.pods), ready))
            return super().desired(observation)

    pool = NodePool(gpus_per_node=1, initial_nodes=2, loss_at_s=(600,))
    fleet(
        even(1, 1000),
        a_plan=autoscaled(),
        controller=Spy((0, 2)),
        cluster=Cluster(nodes=pool, initial_replicas=2),
        duration_s=940,
    )
    for now_s, pods, ready in seen:
        assert pods == 2
        assert ready == (2 if now_s < 650 else 1)


def test_a_reclaimed_node_drains_within_its_notice_and_pods_are_replaced_at_the_notice() -> None:
    """Requests of 20 s finish in a notice of 60 s, those of 2000 s do not."""
    pool = NodePool(gpus_per_node=1, initial_nodes=3, reclaim_at_s=(600,), notice_s=60, idle_s=1e6)
    made, data, _ = fleet(
        even(0.2, 1800, tokens=2000), cluster=Cluster(nodes=pool), duration_s=1800
    )
    assert (data.outcome == "answered").all()
    (lost,) = made.nodes.gone
    assert lost.gone_s == 660
    assert max(pod.created_s for pod in made.pods.alive) == 600
    long, data, _ = fleet(
        even(0.002, 1800, tokens=200_000), cluster=Cluster(nodes=pool), duration_s=1800
    )
    failed = data.outcome == "failed"
    assert failed.sum() == 1
    assert data.end_s[failed] == 660
    assert long.nodes.gone[0].gone_s == 660


def test_losses_at_a_rate_are_poisson() -> None:
    """Twenty nodes of one pod each for 10 h, at one loss in ten node hours."""
    pool = NodePool(gpus_per_node=1, losses_per_node_hour=0.1)
    made, _, _ = fleet(
        even(0.01, 36_000),
        a_plan=plan(replicas=20),
        cluster=Cluster(nodes=pool),
        duration_s=36_000,
    )
    node_hours = made.gpu_held_s() / 3600
    assert len(made.nodes.gone) == pytest.approx(
        0.1 * node_hours, abs=3 * np.sqrt(0.1 * node_hours)
    )


@settings(max_examples=30, deadline=None)
@given(
    gpus=st.integers(1, 8),
    per_pod=st.integers(1, 4),
    most=st.integers(1, 4),
    asks=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    packing=st.sampled_from(["most_allocated", "least_allocated"]),
)
def test_no_node_ever_holds_more_than_it_has(
    gpus: int, per_pod: int, most: int, asks: list[int], packing: str
) -> None:
    if per_pod > gpus:
        gpus = per_pod
    pool = NodePool(gpus_per_node=gpus, max_nodes=most, provision_s=50, idle_s=100, packing=packing)
    made, _, _ = fleet(
        even(0.1, 60 * len(asks)),
        a_plan=autoscaled(gpus_per_replica=per_pod),
        controller=Script(*((60.0 * i, n) for i, n in enumerate(asks))),
        cluster=Cluster(nodes=pool),
        duration_s=60.0 * len(asks),
    )
    changes: list[tuple[float, int, int]] = []
    for pod in made.pods.alive + made.pods.gone:
        if pod.node is not None and pod.bound_s < pod.gone_s:
            # A GPU that is given back may be taken at the same time.
            changes += [(pod.bound_s, 1, pod.node.number), (pod.gone_s, 0, pod.node.number)]
    held = dict.fromkeys(range(100), 0)
    for _, taken, node in sorted(changes):
        held[node] += per_pod if taken else -per_pod
        assert 0 <= held[node] <= gpus
    assert len(made.nodes.nodes) <= most
