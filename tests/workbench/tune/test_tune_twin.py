"""The search on the real twin: a small fleet through a short day."""

from __future__ import annotations

import pytest

from serving.plan import Slo
from simulations.simulate import simulate
from simulations.traffic import Day, Fixed, Workload
from tests.workbench.tune.stub import ENGINE, candidate
from workbench.tune import Tuning, tune

pytestmark = pytest.mark.slow
DAY = Workload(
    arrivals=Day(peak_rps=60),
    prompt_tokens=Fixed(tokens=32),
    output_tokens=Fixed(tokens=16),
    duration_s=7200,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    folder = tmp_path_factory.mktemp("twin")
    return tune(
        [candidate("parent"), candidate("int8", speed=1.3)],
        DAY,
        Slo(ttft_p99_s=1.0),
        engine=ENGINE,
        trials=20,
        seeds=(0,),
        unseen_seeds=(100, 101),
        storage=folder / "study.db",
    )


def test_the_winner_costs_no_more_than_a_static_fleet_and_no_less_than_hindsight(
    found: Tuning,
) -> None:
    hours = found.table().set_index("name")["gpu_hours"]
    assert found.winner_result.keeps_slo
    assert hours["clairvoyant bound"] < hours["tuned"] <= hours["static-peak"]
    kept = found.baselines[found.baselines["keeps_slo"]].set_index("name")["gpu_hours"]
    assert hours["tuned"] <= kept.drop("clairvoyant bound").min()


def test_the_winners_result_is_the_twins(found: Tuning) -> None:
    latency = candidate("int8", speed=1.3).latency
    assert found.winner.variant.name == "int8"
    again = simulate(found.winner, DAY, latency, seeds=(100, 101))
    assert again.metrics == found.winner_result.metrics


def test_the_prediction_is_of_a_replica_that_is_busy_and_keeps_the_slo(found: Tuning) -> None:
    load = found.prediction.workload
    replicas = found.winner_result.metrics["replicas_max"].value
    assert 60 / (2 * replicas) < load.arrivals.rate_rps <= 60
    assert found.prediction.metrics["ttft_p99_s"].value < 1.0
    assert 20 <= load.duration_s <= 30
