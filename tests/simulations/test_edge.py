"""Sites and a centre: requests are conserved, and each is where the rule says."""

from __future__ import annotations

import numpy as np
import pytest

from serving.errors import InputError
from simulations.edge import Place, simulate_edge
from simulations.fleet import Cluster
from simulations.simulate import simulate
from simulations.traffic import Edge, Network, Overflow, Workload
from simulations.traffic.delays import ConstantDelay
from tests.simulations.models import ENGINE, latency, plan, workload

FEW = ENGINE.model_copy(update={"max_num_seqs": 4})
NEAR = Network(round_trip=ConstantDelay(seconds=0.01))
FAR = Network(round_trip=ConstantDelay(seconds=0.2))


def found(edge: Edge, load: Workload | None = None, seed: int = 0) -> dict[str, float]:
    return simulate_edge(
        Place(plan(), latency()),
        Place(plan(engine=FEW), latency()),
        edge,
        load or workload(rate_rps=8, duration_s=300),
        cluster=Cluster(),
        seed=seed,
    )


def of(**changes: object) -> Edge:
    return Edge.model_validate({"sites": 1, "to_site": NEAR, "to_centre": FAR} | changes)


def test_one_site_that_never_passes_on_is_a_fleet_behind_its_network() -> None:
    load = workload(rate_rps=2, duration_s=300)
    edge = found(of(overflow=Overflow(rule="never")), load)
    alone = simulate(plan(engine=FEW), load.at(network=NEAR), latency(), seeds=(0,)).metrics
    assert edge["overflow_share"] == edge["centre_share"] == 0
    for name in ("ttft_p50_s", "ttft_p99_s", "e2e_p99_s", "gpu_hours", "cost_usd", "idle_share"):
        assert edge[name] == pytest.approx(alone[name].value)


def test_what_a_site_has_no_room_for_goes_to_the_centre_and_is_answered_there() -> None:
    edge = found(of(overflow=Overflow(waiting=0)))
    assert 0.1 < edge["overflow_share"] < 0.9
    assert edge["centre_share"] == edge["overflow_share"]
    assert edge["rejected"] == edge["unfinished"] == 0
    assert edge["ttft_p99_s"] > 0.2 > 0.1 > found(of(sites=50))["ttft_p50_s"]
    more_room = [
        found(of(overflow=Overflow(waiting=n)))["overflow_share"] for n in (0, 2, 8, 10**6)
    ]
    assert more_room == sorted(more_room, reverse=True)
    assert more_room[-1] == 0


def test_what_the_small_model_cannot_answer_goes_to_the_centre() -> None:
    edge = found(of(sites=20, small_model_share=0.7, overflow=Overflow(rule="never")))
    assert edge["overflow_share"] == 0
    assert edge["centre_share"] == pytest.approx(0.3, abs=0.04)
    assert edge["gpu_hours"] == pytest.approx(21 * 24)


def test_the_same_seed_is_the_same_edge_and_another_is_not() -> None:
    edge = of(sites=3, site_zipf=0.8, small_model_share=0.9)
    assert found(edge) == found(edge)
    assert found(edge)["e2e_p50_s"] != found(edge, seed=1)["e2e_p50_s"]


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": {"timeout_s": 5}},
        {"network": NEAR},
        {"sessions": {"turns": {"kind": "fixed", "tokens": 2}}},
        {"arrivals": {"kind": "closed", "concurrency": 2, "requests": 9}},
    ],
)
def test_what_two_passes_cannot_do_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        found(of(), workload().at(**changes))


def test_requests_taken_out_of_a_schedule_are_those_rows() -> None:
    drawn = workload().at(network=NEAR, questions={"distinct": 10, "share": 0.5}).schedule()
    rows = np.arange(0, len(drawn), 3)
    part = drawn.take(rows)
    assert np.array_equal(part.arrived_at_s, drawn.arrived_at_s[rows])
    assert part.key is not None
    assert drawn.key is not None
    assert np.array_equal(part.key, drawn.key[rows])
    talks = workload().at(sessions={"turns": {"kind": "fixed", "tokens": 2}}).schedule()
    with pytest.raises(InputError, match="follow others"):
        talks.take(np.arange(2))
