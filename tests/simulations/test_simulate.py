"""A day of a fleet: reproducible, comparable between plans, and honest about what failed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from serving.errors import InfeasibleError, InputError
from serving.gateway.spec import GatewaySpec
from serving.hpa import (
    E2E_P99,
    GPU_UTILISATION,
    REQUESTS_PER_SECOND,
    REQUESTS_RUNNING,
    TTFT_MEAN,
    ExternalMetric,
    HpaSpec,
    Metric,
    MetricIdentifier,
    Target,
    pods_metric,
    quantity,
)
from serving.plan import Slo
from simulations.bounds import capacity_rps, static_peak
from simulations.clairvoyant import clairvoyant_bound
from simulations.engine import percentiles, simulate_workload
from simulations.fleet import Canary, Cluster, Fleet, Release, RollingUpdate
from simulations.result import SimResult
from simulations.simulate import phases, simulate
from simulations.traffic import Clients, ClosedLoop, Constant, Day, Fixed, Spike, Workload
from simulations.traffic.workload import _STREAMS
from tests.simulations.models import ENGINE, latency, plan, workload

ROOT = Path(__file__).resolve().parents[2]


def small(seed: int) -> pd.DataFrame:
    load = workload(rate_rps=30, duration_s=300, warmup_s=30)
    return simulate(plan(replicas=2), load, latency(), seeds=(seed,)).per_seed


def test_sequential_equals_parallel_and_no_seed_depends_on_another() -> None:
    load = workload(rate_rps=30, duration_s=300, warmup_s=30)
    together = simulate(plan(replicas=2), load, latency(), seeds=(0, 1)).per_seed
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        apart = pd.concat(pool.map(small, (0, 1)), ignore_index=True)
    pd.testing.assert_frame_equal(together, apart, check_exact=True)
    assert together["e2e_p50_s"].nunique() == 2


def test_a_cold_compiler_cache_gives_the_same(tmp_path: Path) -> None:
    code = (
        "from tests.simulations.test_simulate import small;"
        "print(repr(small(0)['e2e_p99_s'][0].item()))"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    assert any(tmp_path.rglob("*.nbi"))
    assert float(done.stdout) == small(0)["e2e_p99_s"][0]


def test_the_result_is_whole_and_the_inputs_are_left_alone() -> None:
    a_plan, load, model = plan(replicas=2), workload(rate_rps=10, duration_s=900), latency()
    before = [value.model_dump_json() for value in (a_plan, load, model)]
    said: list[tuple[str, float]] = []
    found = simulate(
        a_plan, load, model, on_progress=lambda what, share: said.append((what, share))
    )
    assert [value.model_dump_json() for value in (a_plan, load, model)] == before
    assert set(found.metrics) == {
        *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s"),
        *("slo_attainment", "gpu_hours", "cost_usd", "replicas_mean", "replicas_max"),
        *("scale_events", "gpu_utilisation_mean", "idle_share", "unfinished"),
        *("failed", "rejected", "aborted"),
    }
    assert list(found.timeline.columns) == [
        *("t_s", "offered_rps", "replicas_ready", "replicas_desired"),
        *("requests_running", "requests_waiting", "kv_cache_usage", "gpu_utilisation"),
    ]
    assert found.metrics["gpu_hours"].value == pytest.approx(48)
    assert found.metrics["cost_usd"].value == pytest.approx(48 * 2.5)
    assert found.metrics["ttft_p99_s"].n == 3
    assert found.timeline["offered_rps"].mean() == pytest.approx(10, rel=0.1)
    assert found.keeps_slo
    # The article's rule on GPU utilisation fires on a fleet that is at a fifth of its capacity.
    assert set(found.alerts["alert"]) == {"GpuUtilisationHigh"}
    assert found.alerts["noise"].all()
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert found._repr_html_().startswith("<b>tested keeps the SLO</b>")


def test_an_overloaded_fleet_breaks_the_slo_and_says_so() -> None:
    found = simulate(plan(replicas=1), workload(rate_rps=90, duration_s=1500), latency())
    assert not found.keeps_slo
    assert found.metrics["slo_attainment"].value < 0.5
    assert found.metrics["gpu_utilisation_mean"].value > 0.9
    fired = {"LatencyMeanHigh", "LatencyP99High", "GpuUtilisationHigh"}
    assert fired <= set(found.alerts["alert"])
    assert not found.alerts["noise"].any()


def test_unanswered_requests_count_with_their_age() -> None:
    found = simulate(plan(replicas=1), workload(rate_rps=400, duration_s=900), latency())
    assert found.metrics["unfinished"].value > 0.3
    assert found.metrics["ttft_p99_s"].value > 900


def e2e_p99(result: SimResult) -> npt.NDArray[np.float64]:
    return result.per_seed["e2e_p99_s"].to_numpy(dtype=np.float64)


def test_common_random_numbers_narrow_a_comparison() -> None:
    load = workload(rate_rps=50, duration_s=400)
    seeds = range(6)
    two, three = (e2e_p99(simulate(plan(replicas=n), load, latency(), seeds=seeds)) for n in (2, 3))
    assert (three < two).all()
    assert np.std(three - two) < 0.5 * np.hypot(np.std(three), np.std(two))


@pytest.mark.parametrize(
    ("load", "seeds", "complaint"),
    [
        (workload(arrivals=ClosedLoop(concurrency=2, requests=10)), (0,), "closed"),
        (workload(), (), "seeds"),
        (workload(rate_rps=1e-6), (0,), "sends nothing"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    load: Workload, seeds: tuple[int, ...], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        simulate(plan(), load, latency(), seeds=seeds)


def test_gpu_utilisation_scales_to_the_maximum_where_the_queue_does_not() -> None:
    """Three replicas carry 60 rps; a device that is busy with one request of 64 looks full."""
    load = workload(rate_rps=60, duration_s=3600)
    by_busy, by_running = (
        simulate(
            plan(hpa=HpaSpec(max_replicas=10, metrics=(pods_metric(name, target),))),
            load,
            latency(),
            cluster=Cluster(initial_replicas=3),
        )
        for name, target in ((GPU_UTILISATION, 70), (REQUESTS_RUNNING, 32))
    )
    assert (by_busy.per_seed["replicas_max"] == 10).all()
    assert (by_running.per_seed["replicas_max"] <= 4).all()
    assert by_running.keeps_slo
    assert by_busy.metrics["gpu_hours"].low > 2 * by_running.metrics["gpu_hours"].high


@pytest.mark.parametrize("name", [TTFT_MEAN, E2E_P99, REQUESTS_PER_SECOND])
def test_latency_and_rate_scale_a_fleet_that_is_too_small(name: str) -> None:
    """One replica carries some 40 of 60 rps; as Pods and as External metric."""
    target = {TTFT_MEAN: 0.1, E2E_P99: 2.0, REQUESTS_PER_SECOND: 30}[name]
    value = Target(type="AverageValue", average_value=quantity(target))
    source = ExternalMetric(metric=MetricIdentifier(name=name), target=value)
    for metric in (pods_metric(name, target), Metric(type="External", external=source)):
        a_plan = plan(hpa=HpaSpec(max_replicas=6, metrics=(metric,)))
        found = simulate(a_plan, workload(rate_rps=60, duration_s=1500), latency(), seeds=(0,))
        assert 2 <= found.metrics["replicas_max"].value <= 6


def test_a_release_reports_its_blast_radius_per_seed() -> None:
    """The same faulty version: everybody's with a rolling update, a few requests' with a canary."""
    load = workload(rate_rps=40, duration_s=1800)
    rolling, canary = (
        simulate(
            plan(replicas=4),
            load,
            latency(),
            seeds=(0, 1),
            release=Release(at_s=300, strategy=strategy, error_share=0.2, slowdown=1.5),
        )
        for strategy in (RollingUpdate(), Canary(share=0.05))
    )
    assert simulate(plan(replicas=2), load, latency(), seeds=(0,)).blast_radius == ()
    for everybody, few in zip(rolling.blast_radius, canary.blast_radius, strict=True):
        assert (everybody.outcome, few.outcome) == ("completed", "rolled back")
        assert everybody.touched_share > 0.7
        assert everybody.failed == pytest.approx(0.2 * everybody.touched, rel=0.1)
        assert 0 < few.failed < few.touched < 0.01 * everybody.touched
        assert few.detected_after_s == 60
    assert rolling.metrics["failed"].value == pytest.approx(
        np.mean([radius.failed for radius in rolling.blast_radius]) / (40 * 1800), rel=0.02
    )
    assert rolling.metrics["slo_attainment"].value < canary.metrics["slo_attainment"].value
    assert set(canary.events["event"]) == {"ready", "deleted", "gone", "terminated"}


def test_errors_that_clients_send_again_are_counted_as_errors() -> None:
    load = workload(rate_rps=20, duration_s=900, clients=Clients(max_retries=3))
    found = simulate(
        plan(replicas=2),
        load,
        latency(),
        seeds=(0,),
        release=Release(at_s=100, strategy=RollingUpdate(), error_share=0.2),
    )
    (radius,) = found.blast_radius
    # Of a request 0.2^4 are left; sent again it is drawn again.
    assert radius.failed < 0.01 * radius.touched
    assert radius.errors == pytest.approx((0.2 / 0.8) * radius.touched, rel=0.1)


def test_capacity_is_where_the_slo_breaks() -> None:
    slo = Slo(ttft_p99_s=0.5)
    load = workload()
    found = capacity_rps(load, latency(), ENGINE, slo)
    for share, keeps in ((0.97, True), (1.1, False)):
        spaced = load.at(arrivals=Constant(rate_rps=found * share), duration_s=10_000 / found)
        requests = simulate_workload(spaced, latency(), ENGINE)
        assert (percentiles(requests.iloc[2500:])["ttft_p99_s"] <= 0.5) == keeps


def test_capacity_is_of_evenly_spaced_requests_whatever_spikes_the_day_has() -> None:
    slo = Slo(ttft_p99_s=0.5)
    load = workload()
    spiked = load.at(spikes=(Spike(at_s=100, height=20, length_s=30),))
    found = capacity_rps(load, latency(), ENGINE, slo)
    assert capacity_rps(spiked, latency(), ENGINE, slo) == found
    late = load.at(duration_s=90_000, spikes=(Spike(at_s=80_000, height=20, length_s=30),))
    assert capacity_rps(late, latency(), ENGINE, slo) == found


def test_bounds_are_in_order() -> None:
    """Clairvoyant <= smallest static fleet that keeps the SLO; one replica fewer breaks it."""
    day = workload(
        arrivals=Day(peak_rps=120),
        prompt_tokens=Fixed(tokens=300),
        output_tokens=Fixed(tokens=100),
        duration_s=1200,
    )
    a_plan = plan(slo=Slo(ttft_p99_s=0.3))
    static = static_peak(a_plan, day, latency(), seeds=(0, 1))
    bound = clairvoyant_bound(day, latency(), ENGINE, a_plan.slo)
    assert 2 <= static <= 5
    assert 24 * 0.3 * static < bound <= 24 * static
    fewer = plan(slo=a_plan.slo, replicas=static - 1)
    assert not simulate(fewer, day, latency(), seeds=(0, 1)).keeps_slo


def test_a_fleet_that_turns_requests_away_does_not_keep_the_slo_however_fast_it_is() -> None:
    load = workload(rate_rps=90, duration_s=300)
    full = plan(replicas=1, gateway=GatewaySpec(max_outstanding=ENGINE.max_num_seqs))
    found = simulate(full, load, latency(), seeds=(0, 1))
    assert found.metrics["ttft_p99_s"].high <= 0.5
    assert found.metrics["rejected"].value > full.slo.max_error_share
    assert not found.keeps_slo
    lax = plan(
        replicas=1, gateway=full.gateway, slo=full.slo.model_copy(update={"max_error_share": 1.0})
    )
    assert simulate(lax, load, latency(), seeds=(0, 1)).keeps_slo
    assert static_peak(lax, load, latency(), seeds=(0,)) == 1
    assert static_peak(full, load, latency(), seeds=(0,)) > 1


def test_an_slo_that_no_fleet_keeps_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match="one request at a time"):
        static_peak(plan(slo=Slo(ttft_p99_s=0.005)), workload(), latency())


def test_the_round_trip_is_the_users_and_not_the_servers() -> None:
    """A constant round trip moves TTFT and E2E by all of it, and nothing else."""
    load = workload(rate_rps=20, duration_s=300)
    near = simulate(plan(), load, latency(), seeds=(0,))
    away = load.at(network={"round_trip": {"kind": "constant", "seconds": 0.25}})
    far = simulate(plan(), away, latency(), seeds=(0,))
    for name in ("ttft_p50_s", "ttft_p99_s", "e2e_p50_s", "e2e_p99_s"):
        moved_s = far.metrics[name].value - near.metrics[name].value
        assert moved_s == pytest.approx(0.25, abs=1e-9)
    for name in ("tpot_p50_s", "tpot_p99_s", "gpu_utilisation_mean", "gpu_hours"):
        assert far.metrics[name] == near.metrics[name]
    pd.testing.assert_frame_equal(far.timeline, near.timeline)


def test_no_stream_of_the_control_loops_is_one_of_the_traffics() -> None:
    load = workload()
    traffic = {s.spawn_key for s in np.random.SeedSequence(load.seed).spawn(len(_STREAMS))}
    own = cast(np.random.SeedSequence, phases(load.seed).bit_generator.seed_seq)
    assert own.entropy == load.seed
    assert own.spawn_key not in traffic


def test_a_large_run_lets_go_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Fleet]] = []
    still_there: list[int] = []

    class Noted(Fleet):
        def __init__(self, *args: Any, **how: Any) -> None:
            still_there.append(sum(fleet() is not None for fleet in made))
            made.append(weakref.ref(self))
            super().__init__(*args, **how)

    monkeypatch.setattr("simulations.simulate.Fleet", Noted)
    monkeypatch.setattr("simulations.simulate._MANY", 0)
    load = workload(rate_rps=30, duration_s=60)
    gc.disable()
    try:
        simulate(plan(replicas=1), load, latency(), seeds=(0, 1, 2))
    finally:
        gc.enable()
    assert still_there == [0, 0, 0]
