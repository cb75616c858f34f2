"""One replica: equal to the plain reference, conserving requests, and right by theory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from scipy import stats

from serving.errors import InputError
from serving.plan import EngineArgs
from simulations.engine import (
    SchedulerOptions,
    estimate,
    simulate_replica,
    simulate_workload,
    trace_replica,
)
from simulations.engine.reference import reference_replica
from simulations.traffic import ClosedLoop, Fixed, Poisson, Schedule, Segments
from tests.simulations.engine_cases import Case, cases
from tests.simulations.models import ENGINE, latency, workload


def schedule(seed: int, n: int, rate_rps: float, longest: int) -> Schedule:
    rng = np.random.default_rng(seed)
    return Schedule(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        rng.integers(1, longest, n),
        rng.integers(1, longest, n),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_every_step_is_that_of_the_reference(case: Case) -> None:
    """Both ways through the compiled core: with a record of each step, and as it is used."""
    asked = case.schedule, case.latency, case.options
    wanted, steps = reference_replica(*asked, concurrency=case.concurrency)
    found, made, pairs = trace_replica(*asked, concurrency=case.concurrency)
    tokens = [dict(zip(g["request"], g["tokens"], strict=True)) for _, g in pairs.groupby("step")]
    assert tokens == [{r.index: n for r, n in step.tokens.items()} for step in steps]
    for name in made.columns.difference(["running", "waiting"]):
        np.testing.assert_allclose(
            made[name], [getattr(step, name) for step in steps], atol=1e-9, err_msg=name
        )
    np.testing.assert_allclose(found[wanted.columns], wanted, atol=1e-9)
    engine = EngineArgs(max_model_len=10**6, max_num_seqs=10, max_num_batched_tokens=512)
    fast = simulate_replica(
        case.schedule, case.latency, engine, options=case.options, concurrency=case.concurrency
    )
    pd.testing.assert_frame_equal(fast, found)


def test_two_that_arrive_at_once_do_not_preempt_each_other_for_ever() -> None:
    """Each is too long for the half of the blocks that the other leaves, and gets a token a step."""
    at_once = Schedule(
        np.full(2, 0.301),
        np.array([37, 47]),
        np.array([55, 58]),
        priority=np.zeros(2, dtype=np.int64),
    )
    options = SchedulerOptions(
        max_seqs=2,
        max_step_tokens=2,
        block_size=3,
        long_prefill_tokens=1,
        priority=True,
        prefix_caching=False,
        async_scheduling=True,
        watermark_blocks=2,
    )
    table, _ = reference_replica(at_once, latency(kv_blocks=38, block_size_tokens=3), options)
    assert (table["preemptions"] > 0).tolist() == [False, True]


def test_the_cases_are_not_empty() -> None:
    """The property above, and vLLM's, would be without preemptions, hits, aborts and rejections."""
    seen = {"steps": 0, "preemptions": 0, "hit_tokens": 0, "aborted": 0, "rejected": 0, "turns": 0}

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(case=cases())
    def count(case: Case) -> None:
        found, made, _ = trace_replica(
            case.schedule, case.latency, case.options, concurrency=case.concurrency
        )
        seen["steps"] += len(made)
        seen["preemptions"] += int(found["preemptions"].sum())
        seen["hit_tokens"] += int(made["hit_tokens"].sum())
        for name in ("aborted", "rejected"):
            seen[name] += int((found["outcome"] == name).sum())
        seen["turns"] += int(case.schedule.conversations)

    count()
    assert min(seen.values()) > 0
    assert seen["steps"] > 1000


@pytest.mark.parametrize(
    ("version", "changed"),
    [
        ("0.26.0", {"lone_prefill_uncapped": False, "unscheduled_victim_skips_next": True}),
        ("0.30.1", {"lone_prefill_uncapped": False}),
        ("0.32.0", {}),
        ("0.33.0", {"self_preemption_ends_step": False}),
        ("", {}),
    ],
)
def test_versions_are_options_with_names(version: str, changed: dict[str, bool]) -> None:
    options = SchedulerOptions(max_seqs=4, max_step_tokens=64)
    assert options.at(version) == options.model_copy(update=changed)


def test_real_step_times_are_taken_as_they_are() -> None:
    """The twin on the times of its own steps ends when it ended, to the step."""
    drawn = schedule(3, 200, 20.0, 60)
    model = latency(kv_blocks=60, request_overhead_s=0.0)
    options = SchedulerOptions(max_seqs=8, max_step_tokens=64)
    wanted, steps, _ = trace_replica(drawn, model, options)
    took_s = (steps["end_s"] - steps["start_s"]).to_numpy()
    flat = model.model_copy(update={"base_s": 1.0, "step_overhead_s": 0.5})
    found, _, _ = trace_replica(drawn, flat, options, step_times_s=took_s)
    np.testing.assert_allclose(found["end_s"], wanted["end_s"], rtol=1e-9)


def test_noise_is_drawn_from_what_was_measured() -> None:
    model = latency(residuals=(0.5, 1.0, 1.5), request_noise_s=(-0.001, 0.0, 0.001))
    drawn = schedule(4, 2000, 5.0, 300)
    noisy, again, other = (simulate_replica(drawn, model, ENGINE, seed=seed) for seed in (1, 1, 2))
    quiet = simulate_replica(drawn, model, ENGINE, noise=False)
    pd.testing.assert_frame_equal(noisy, again)
    assert not np.allclose(noisy["e2e_s"], other["e2e_s"])
    assert noisy["e2e_s"].mean() == pytest.approx(quiet["e2e_s"].mean(), rel=0.05)
    assert noisy["tpot_s"].std() > quiet["tpot_s"].std()


def test_clients_that_give_up_and_servers_that_are_full() -> None:
    n = 50
    model, engine = latency(), EngineArgs(max_num_seqs=2, max_num_queued_reqs=10)
    rush = Schedule(np.zeros(n), np.full(n, 100), np.full(n, 100), patience_s=np.full(n, 1.5))
    found = simulate_replica(rush, model, engine)
    assert (found["outcome"] == "rejected").sum() == n - 10
    assert {"answered", "aborted"} < set(found["outcome"])
    assert found.loc[found["outcome"] != "answered", "end_s"].isna().all()
    assert found.loc[found["outcome"] == "answered", "e2e_s"].max() <= 1.5


def test_a_second_turn_finds_the_first_in_the_cache() -> None:
    turns = Schedule(
        np.array([0.0, 0.0]),
        np.array([160, 160 + 32 + 16]),
        np.array([32, 8]),
        segments=Segments.of((((0, 160),), ((0, 160), (-1, 32), (1, 16)))),
        after=np.array([-1, 0]),
        think_s=np.array([0.0, 2.0]),
    )
    model = latency(response_overhead_s=0.001)
    found = simulate_replica(turns, model, EngineArgs(enable_prefix_caching=True))
    assert list(found["cached_tokens"]) == [0, 176]
    assert found["arrived_at_s"][1] == pytest.approx(found["end_s"][0] + 2.0)
    cold = simulate_replica(turns, model, EngineArgs())
    assert cold["ttft_s"][1] > found["ttft_s"][1]


def test_an_empty_schedule_is_no_run() -> None:
    nothing = Schedule(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert simulate_replica(nothing, latency(), ENGINE).empty


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
    base_s, gap_s = model.base_s + model.per_seq_s, model.step_overhead_s
    prefill_s = base_s + 100 * model.per_token_s + gap_s
    decode_s = sum(base_s + model.per_token_s + 1e-6 * kv + gap_s for kv in (100, 101, 102, 103))
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
        floor_s=0,
        base_s=0.01,
        per_token_s=0,
        per_seq_s=0,
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
        floor_s=0,
        base_s=0.001,
        per_token_s=0,
        per_seq_s=0,
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


@pytest.mark.parametrize("tokens", [100, 600])
def test_a_launch_is_waited_for_on_an_idle_engine_and_hidden_by_a_long_step(tokens: int) -> None:
    model = latency(
        base_s=0.002, floor_s=0.0, per_seq_s=0.0, per_token_s=1e-5, per_kv_token_s=0.0,
        prefill_step_s=0.0, prefill_launch_s=0.010, uncaptured_launch_s=0.020, captured_tokens=512,
        request_overhead_s=0.0, response_overhead_s=0.0, step_overhead_s=0.0, residuals=(),
    )  # fmt: skip
    launch_s = 0.010 if tokens <= 512 else 0.020
    assert model.launch_s(tokens, 0) == launch_s
    pipelined = SchedulerOptions(max_seqs=8, max_step_tokens=2048, async_scheduling=True)
    alone = Schedule(np.array([0.0]), np.array([tokens]), np.array([1]))
    served, _, _ = trace_replica(alone, model, pipelined)
    assert served["ttft_s"][0] == pytest.approx(launch_s)
    # Beside a decode: decided when the step before the last ended, so that a step hides 2.01 ms.
    beside = Schedule(np.array([0.0, 0.1]), np.array([10, tokens]), np.array([200, 1]))
    _, steps, _ = trace_replica(beside, model, pipelined)
    late = steps[(steps["prefill_tokens"] == tokens)].iloc[0]
    assert late["end_s"] - late["decided_s"] == pytest.approx(launch_s)
    assert late["end_s"] - late["start_s"] == pytest.approx(launch_s - 0.00201)
    slow = model.model_copy(update={"base_s": 0.030})
    _, steps, _ = trace_replica(beside, slow, pipelined)
    late = steps[(steps["prefill_tokens"] == tokens)].iloc[0]
    assert late["end_s"] - late["start_s"] == pytest.approx(0.030 + 1e-5 * (tokens + 1))
