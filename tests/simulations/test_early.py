"""A run that ends early, or that nobody watches, says what the whole one would have said."""

from __future__ import annotations

from typing import Any

import pytest

from serving.gateway.spec import GatewaySpec
from serving.hpa import (
    GPU_UTILISATION,
    REQUESTS_PER_SECOND,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    TTFT_P99,
    HpaSpec,
    pods_metric,
)
from serving.plan import Plan, Slo
from simulations.early import Stop
from simulations.fleet import Cluster
from simulations.simulate import simulate
from simulations.traffic import Workload
from tests.simulations.models import latency, plan, workload

LOAD = workload(rate_rps=30, duration_s=1800, warmup_s=120)
SLO = Slo(ttft_p99_s=0.3, tpot_p99_s=0.012)


def scaled(metric: str, target: float, least: int = 1, most: int = 6) -> Plan:
    metrics = (pods_metric(metric, target),)
    hpa = HpaSpec(min_replicas=least, max_replicas=most, metrics=metrics)
    return plan(slo=SLO, hpa=hpa)


PLANS = {
    "static 1": plan(slo=SLO, replicas=1),
    "static 3": plan(slo=SLO, replicas=3),
    "running": scaled(REQUESTS_RUNNING, 12),
    "waiting": scaled(REQUESTS_WAITING, 2),
    "utilisation": scaled(GPU_UTILISATION, 70),
    "latency": scaled(TTFT_MEAN, 0.1),
    "latency p99": scaled(TTFT_P99, 0.1),
    "rate": scaled(REQUESTS_PER_SECOND, 10),
    "held": scaled(REQUESTS_RUNNING, 12, 2, 2),
    "spares": scaled(REQUESTS_RUNNING, 12).model_copy(update={"warm_spares": 1}),
}


def metrics(tested: Plan, load: Workload = LOAD, seed: int = 0, **how: Any) -> dict[str, float]:
    found = simulate(tested, load, latency(), seeds=(seed,), **how)
    return {name: one.value for name, one in found.metrics.items()}


@pytest.mark.parametrize("name", PLANS)
def test_what_nobody_watches_happens_all_the_same(name: str) -> None:
    assert metrics(PLANS[name], watched=False) == metrics(PLANS[name])


def test_alerts_and_timeline_are_left_out_where_nobody_watches() -> None:
    found = simulate(PLANS["static 1"], LOAD, latency(), seeds=(0,), watched=False)
    assert found.alerts.empty
    assert list(found.timeline) == ["t_s", "replicas_ready", "replicas_desired"]
    assert (found.timeline["replicas_ready"] == 1).all()


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("rate_rps", [15, 40, 80])
@pytest.mark.parametrize("times_over", [1.0, 1.5])
def test_a_run_is_stopped_for_what_the_whole_one_shows(
    name: str, rate_rps: float, times_over: float
) -> None:
    load = workload(rate_rps=rate_rps, duration_s=1200, warmup_s=120)
    whole = metrics(PLANS[name], load, watched=False)
    limits = {limit: times_over * value for limit, value in SLO.limits().items()}
    dear = 0.9 * whole["gpu_hours"]
    for stop in (Stop(times_over), Stop(times_over=100.0, gpu_hours=dear)):
        found = simulate(PLANS[name], load, latency(), seeds=(0,), stop=stop, watched=False)
        if not found.stopped:
            assert {n: e.value for n, e in found.metrics.items()} == whole
        elif found.stopped == "costs more":
            assert found.metrics["gpu_hours"].value > stop.gpu_hours
        else:
            assert any(whole[limit] > value for limit, value in limits.items())
        assert found.metrics["gpu_hours"].value <= whole["gpu_hours"] + 1e-9


def test_a_hopeless_fleet_is_stopped_and_a_sound_one_is_not() -> None:
    load = workload(rate_rps=80, duration_s=1200, warmup_s=120)
    few = simulate(PLANS["static 1"], load, latency(), seeds=(0,), stop=Stop(1.5))
    assert few.stopped == "breaks the SLO"
    assert not few.keeps_slo
    sound = simulate(PLANS["static 3"], LOAD, latency(), seeds=(0,), stop=Stop(1.5, 73.0))
    assert (sound.stopped, sound.keeps_slo) == ("", True)
    dear = simulate(PLANS["static 3"], LOAD, latency(), seeds=(0,), stop=Stop(1.5, 71.0))
    assert dear.stopped == "costs more"
    assert dear.metrics["gpu_hours"].value == pytest.approx(72)


def test_lost_requests_end_a_run_too() -> None:
    refusing = plan(slo=SLO, replicas=1, gateway=GatewaySpec(max_outstanding=8))
    load = workload(rate_rps=60, duration_s=1200)
    found = simulate(refusing, load, latency(), seeds=(0,), stop=Stop(1.5))
    whole = metrics(refusing, load)
    assert found.stopped == "breaks the SLO"
    assert whole["rejected"] > 1.5 * SLO.max_error_share


def test_a_fleet_that_may_lack_gpus_is_charged_for_what_it_held_alone() -> None:
    short = Cluster(max_gpus=2)
    found = simulate(
        PLANS["static 3"], LOAD, latency(), seeds=(0,), cluster=short, stop=Stop(100, 71.0)
    )
    assert found.stopped == ""
    assert found.metrics["gpu_hours"].value == pytest.approx(48)
