"""One replica: equal to the plain reference, conserving requests, and right by theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from serving.errors import InputError
from serving.plan import EngineArgs
from serving.values import Estimate
from simulations.engine import estimate, predict, simulate_replica, simulate_workload
from simulations.traffic import ClosedLoop, Fixed, Poisson, Schedule
from tests.simulations.models import ENGINE, latency, plan, workload
from tests.simulations.reference import reference_replica


def schedule(seed: int, n: int, rate_rps: float, longest: int) -> Schedule:
    rng = np.random.default_rng(seed)
    return Schedule(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        rng.integers(1, longest, n),
        rng.integers(1, longest, n),
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rate_rps=st.sampled_from([0.5, 5.0, 50.0, 5000.0]),
    max_seqs=st.integers(1, 12),
    batched=st.integers(12, 200),
    block_size=st.sampled_from([1, 3, 16]),
    spare_tokens=st.integers(0, 600),
    floor_s=st.sampled_from([0.0, 0.006, 0.02]),
    kv_s=st.sampled_from([0.0, 1e-5]),
    users=st.sampled_from([None, 1, 7]),
)
def test_equals_the_reference(
    seed: int,
    rate_rps: float,
    max_seqs: int,
    batched: int,
    block_size: int,
    spare_tokens: int,
    floor_s: float,
    kv_s: float,
    users: int | None,
) -> None:
    """Few blocks make preemption common; both ways through the compiled core must agree."""
    longest = 60
    model = latency(
        floor_s=floor_s,
        per_kv_token_s=kv_s,
        per_prefill_attention_s=1e-8,
        block_size_tokens=block_size,
        kv_blocks=1 + (2 * longest + spare_tokens) // block_size + 1,
    )
    engine = EngineArgs(
        max_model_len=2 * longest, max_num_seqs=max_seqs, max_num_batched_tokens=batched
    )
    drawn = schedule(seed, 60, rate_rps, longest)
    if users is not None:
        drawn = Schedule(np.zeros(60), drawn.prompt_tokens, drawn.output_tokens)
    wanted = reference_replica(drawn, model, engine, concurrency=users)
    for step_by_step in (False, True):
        found = simulate_replica(drawn, model, engine, concurrency=users, step_by_step=step_by_step)
        np.testing.assert_allclose(found[wanted.columns], wanted, rtol=1e-9, atol=1e-9)


def test_the_workloads_of_the_property_preempt() -> None:
    """The property above would be empty without."""
    model = latency(kv_blocks=1 + 180, block_size_tokens=1)
    engine = EngineArgs(max_model_len=120, max_num_seqs=12, max_num_batched_tokens=200)
    found = simulate_replica(schedule(1, 60, 50.0, 60), model, engine)
    assert found["preemptions"].sum() > 5


def test_requests_are_conserved_and_inputs_left_alone() -> None:
    drawn = schedule(2, 3000, 20.0, 300)
    before = [array.copy() for array in (drawn.arrived_at_s, drawn.prompt_tokens)]
    found = simulate_replica(drawn, latency(kv_blocks=400), ENGINE)
    assert found["end_s"].notna().all()
    assert (found["first_token_s"] <= found["end_s"]).all()
    assert (found["ttft_s"] > 0).all()
    assert found["output_tokens"].sum() == drawn.output_tokens.sum()
    np.testing.assert_array_equal(before[0], drawn.arrived_at_s)
    np.testing.assert_array_equal(before[1], drawn.prompt_tokens)


def test_a_lone_request_takes_what_the_model_says() -> None:
    model = latency(floor_s=0.0, per_kv_token_s=1e-6)
    one = Schedule(np.array([3.0]), np.array([100]), np.array([5]))
    found = simulate_replica(one, model, ENGINE).iloc[0]
    prefill_s = 0.0045 + 100 * 2.4e-5 + 4e-4
    decode_s = sum(0.0045 + 2e-5 + 1e-6 * kv + 4e-4 for kv in (100, 101, 102, 103))
    assert found["ttft_s"] == pytest.approx(0.003 + prefill_s)
    assert found["e2e_s"] == pytest.approx(0.003 + prefill_s + decode_s)
    assert found["tpot_s"] == pytest.approx(decode_s / 4)


def replicated(values: list[float]) -> tuple[float, float, float]:
    found = estimate(values)
    return found.value, found.low, found.high


def test_waiting_is_that_of_m_d_1() -> None:
    """One sequence at a time with fixed lengths: W = rho s / (2 (1 - rho)), Pollaczek-Khinchine."""
    service_s, rho = 0.1, 0.7
    model = latency(
        floor_s=0.01,
        base_s=0.01,
        per_prefill_token_s=0,
        per_decode_seq_s=0,
        per_kv_token_s=0,
        step_overhead_s=0,
        request_overhead_s=0,
    )
    engine = EngineArgs(max_model_len=64, max_num_seqs=1, max_num_batched_tokens=64)
    load = workload(
        arrivals=Poisson(rate_rps=rho / service_s),
        prompt_tokens=Fixed(tokens=20),
        output_tokens=Fixed(tokens=10),
        duration_s=20_000,
    )
    waits = []
    for seed in range(12):
        found = simulate_workload(load, model, engine, seed=seed)
        waits.append(float(found["e2e_s"][2000:].mean()) - service_s)
    theory_s = rho * service_s / (2 * (1 - rho))
    mean_s, low_s, high_s = replicated(waits)
    assert low_s < theory_s < high_s
    assert high_s - low_s < 0.05 * mean_s


def test_an_unlimited_batch_is_m_d_infinity() -> None:
    """Steps as long whatever they hold: every request takes its own steps and no more.

    The number in the system is then Poisson with mean rate x E2E (Little's law gives the mean,
    the law its variance).
    """
    model = latency(
        floor_s=0.001,
        base_s=0.001,
        per_prefill_token_s=0,
        per_decode_seq_s=0,
        per_kv_token_s=0,
        step_overhead_s=0,
        request_overhead_s=0,
        kv_blocks=10**6,
    )
    engine = EngineArgs(max_model_len=1024, max_num_seqs=4096, max_num_batched_tokens=10**6)
    load = workload(
        arrivals=Poisson(rate_rps=100),
        prompt_tokens=Fixed(tokens=10),
        output_tokens=Fixed(tokens=200),
        duration_s=300,
    )
    found = simulate_workload(load, model, engine)
    # A request waits for the step in progress (half of one in the mean, less when idle).
    assert found["e2e_s"].mean() == pytest.approx(0.2 + 0.0005, abs=3e-5)
    moments = np.arange(10, 290, 0.5)
    inside = np.array(
        [((found["arrived_at_s"] <= t) & (found["end_s"] > t)).sum() for t in moments]
    )
    share = stats.poisson.ppf([1e-4, 1 - 1e-4], 100 * 0.2005)
    assert inside.mean() == pytest.approx(20.05, rel=0.05)
    assert inside.var() == pytest.approx(20.05, rel=0.25)
    assert (inside >= share[0]).mean() > 0.995
    assert (inside <= share[1]).mean() > 0.995


def test_littles_law_in_a_closed_loop() -> None:
    """Throughput x mean E2E = users."""
    load = workload(arrivals=ClosedLoop(concurrency=32, requests=20_000))
    found = simulate_workload(load, latency(), ENGINE)
    steady = found[(found["arrived_at_s"] > 50) & (found["end_s"] < found["end_s"].max() - 50)]
    lasted_s = steady["arrived_at_s"].max() - steady["arrived_at_s"].min()
    assert len(steady) / lasted_s * steady["e2e_s"].mean() == pytest.approx(32, rel=0.02)


def test_more_load_never_lowers_mean_latency() -> None:
    drawn = workload(rate_rps=1.0, duration_s=3000).schedule()
    means = []
    for rate_rps in (1, 4, 16, 32, 64):
        squeezed = Schedule(drawn.arrived_at_s / rate_rps, drawn.prompt_tokens, drawn.output_tokens)
        means.append(simulate_replica(squeezed, latency(), ENGINE)["e2e_s"].mean())
    assert means == sorted(means)
    assert means[-1] > 1.2 * means[0]


def test_predict_counts_after_the_warm_up_and_narrows_with_seeds() -> None:
    load = workload(rate_rps=8, duration_s=400, warmup_s=100)
    few = predict(plan(), latency(), load, seeds=range(3))
    many = predict(plan(), latency(), load, seeds=range(12))
    assert set(few.metrics) == {
        *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s"),
        "output_tokens_per_s",
    }
    assert _width(many.metrics["e2e_p50_s"]) < _width(few.metrics["e2e_p50_s"])
    offered = 8 * np.mean(load.output_tokens.draw(10**5, np.random.default_rng(0)))
    assert many.metrics["output_tokens_per_s"].value == pytest.approx(offered, rel=0.1)


def _width(found: Estimate) -> float:
    return found.high - found.low


@pytest.mark.parametrize(
    ("model_len", "blocks", "complaint"), [(100, 1000, "max_model_len"), (4096, 5, "KV cache")]
)
def test_requests_that_cannot_be_served_are_refused(
    model_len: int, blocks: int, complaint: str
) -> None:
    engine = EngineArgs(max_model_len=model_len)
    one = Schedule(np.array([0.0]), np.array([90]), np.array([20]))
    with pytest.raises(InputError, match=complaint):
        simulate_replica(one, latency(kv_blocks=blocks), engine)
