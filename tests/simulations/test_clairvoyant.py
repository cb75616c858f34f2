"""Nothing feasible is cheaper than the bound: by trying everything, and on the twin."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.plan import EngineArgs, Slo
from simulations.clairvoyant import clairvoyant_bound, fewest_replica_s, least_work_s
from simulations.engine import SchedulerOptions, trace_replica
from simulations.simulate import simulate
from simulations.traffic import Schedule, Workload
from tests.simulations.models import ENGINE, latency, plan, workload

SLOTS = 4
MOST = 4
Job = tuple[int, int, int]


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    """(arrived, due, work) in whole slots."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        arrived = draw(st.integers(0, SLOTS - 1))
        due = draw(st.integers(arrived + 1, SLOTS + 1))
        found.append((arrived, due, draw(st.integers(1, 3))))
    return sorted(found)


def feasible(wanted: list[Job], replicas: tuple[int, ...]) -> bool:
    """Hall's condition: no window holds more work than replica time."""
    return all(
        sum(work for a, d, work in wanted if start <= a and d <= end) <= sum(replicas[start:end])
        for start in range(SLOTS)
        for end in range(start + 1, SLOTS + 1)
    )


def cheapest(wanted: list[Job], least: int, dropped: int) -> int | None:
    """Of all fleets and all choices of what to drop; None where none of the fleets does."""
    must = [job for job in wanted if job[1] <= SLOTS]
    kept = [list(c) for c in combinations(must, max(0, len(must) - dropped))]
    costs = [
        sum(replicas)
        for replicas in product(range(least, MOST + 1), repeat=SLOTS)
        if any(feasible(part, replicas) for part in kept)
    ]
    return min(costs, default=None)


def bound(wanted: list[Job], least: int, dropped: int) -> float:
    arrived, due, work = (np.array(column, dtype=float) for column in zip(*wanted, strict=True))
    return fewest_replica_s(arrived, due, work, until_s=SLOTS, least=least, dropped=dropped)


@settings(max_examples=60, deadline=None)
@given(jobs(), st.integers(0, 2), st.integers(0, 2))
def test_no_fleet_of_all_that_there_are_is_cheaper(
    wanted: list[Job], least: int, dropped: int
) -> None:
    found = cheapest(wanted, least, dropped)
    if found is not None:
        assert bound(wanted, least, dropped) <= found + 1e-9


@settings(max_examples=60, deadline=None)
@given(jobs(), st.integers(0, 2))
def test_where_nothing_may_be_dropped_the_bound_is_reached(wanted: list[Job], least: int) -> None:
    found = cheapest(wanted, least, 0)
    if found is not None:
        assert bound(wanted, least, 0) == pytest.approx(found)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 30)), min_size=1, max_size=30),
    st.sampled_from([(1, 32), (4, 32), (8, 64), (16, 256)]),
    st.sampled_from([0.0, 0.0045]),
    st.booleans(),
)
def test_requests_take_no_less_of_a_replica_than_their_work(
    lengths: list[tuple[int, int]], sizes: tuple[int, int], floor_s: float, at_once: bool
) -> None:
    """The twin's steps, chunked and batched as vLLM does, last at least as long as the work."""
    engine = EngineArgs(max_num_seqs=sizes[0], max_num_batched_tokens=sizes[1])
    model = latency(
        floor_s=floor_s, prefill_step_s=0.002, per_prefill_attention_s=1e-7, step_overhead_s=0.0
    )
    prompt, output = (np.array(column) for column in zip(*lengths, strict=True))
    arrived_s = np.zeros(len(prompt)) if at_once else np.arange(len(prompt)) * 0.02
    schedule = Schedule(arrived_s, prompt, output)
    _, steps, _ = trace_replica(schedule, model, SchedulerOptions.of(engine, model))
    took_s = float((steps["end_s"] - steps["start_s"]).sum())
    work_s = float(least_work_s(schedule, model, engine).sum())
    assert 0 < work_s <= took_s * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=60),
    st.sampled_from([(4, 32), (16, 256), (64, 512)]),
    st.sampled_from([0.0, 0.0045]),
    st.sampled_from([0.0, 2e-6]),
    st.floats(0.0, 0.03),
    st.floats(0.0, 1.0),
)
def test_those_that_keep_a_tpot_take_no_less_of_a_replica_than_their_work(
    lengths: list[tuple[int, int]],
    sizes: tuple[int, int],
    floor_s: float,
    per_kv_token_s: float,
    apart_s: float,
    share: float,
) -> None:
    """Whatever the limit, of all that the replica did; the limit lies among the TPOT that there were."""
    engine = EngineArgs(max_num_seqs=sizes[0], max_num_batched_tokens=sizes[1])
    model = latency(
        floor_s=floor_s,
        per_seq_s=1e-4,
        per_kv_token_s=per_kv_token_s,
        prefill_step_s=0.002,
        response_per_seq_s=1e-4,
    )
    prompt, output = (np.array(column) for column in zip(*lengths, strict=True))
    schedule = Schedule(np.arange(len(prompt)) * apart_s, prompt, output)
    requests, steps, _ = trace_replica(schedule, model, SchedulerOptions.of(engine, model))
    took_s = float((steps["end_s"] - steps["start_s"]).sum())
    found = requests["tpot_s"]
    limit_s = 0.01 if found.isna().all() else float(found.quantile(share))
    work_s = least_work_s(schedule, model, engine, tpot_s=limit_s)
    keeping = (found <= limit_s).to_numpy()
    assert (work_s > 0).all()
    assert float(work_s[keeping].sum()) <= took_s * (1 + 1e-9)


def test_the_work_of_a_full_batch_of_alike_is_what_it_takes() -> None:
    """Where all steps cost the same and all sequences bring the same, the bound is met."""
    engine = EngineArgs(max_num_seqs=8, max_num_batched_tokens=512)
    model = latency(per_seq_s=1e-3, per_kv_token_s=0.0, step_overhead_s=0.0, per_token_s=0.0)
    n, output = 8, 400
    schedule = Schedule(np.zeros(n), np.full(n, 8), np.full(n, output))
    requests, steps, _ = trace_replica(schedule, model, SchedulerOptions.of(engine, model))
    took_s = float((steps["end_s"] - steps["start_s"]).sum())
    limit_s = float(requests["tpot_s"].max()) * (1 + 1e-9)
    work_s = least_work_s(schedule, model, engine, tpot_s=limit_s).sum()
    assert 0.99 * took_s < work_s <= took_s


@pytest.mark.parametrize(
    ("slo", "load"),
    [
        (Slo(ttft_p99_s=0.5, tpot_p99_s=0.0085), workload(rate_rps=30, duration_s=300)),
        (
            Slo(ttft_p99_s=None, tpot_p99_s=0.0085, e2e_p99_s=20),
            workload(rate_rps=30, duration_s=300),
        ),
        (Slo(ttft_p99_s=0.5), workload(rate_rps=20, duration_s=300)),
        (Slo(ttft_p99_s=30), workload(rate_rps=30, duration_s=300, warmup_s=30)),
        (Slo(ttft_p99_s=None, e2e_p99_s=20), workload(rate_rps=30, duration_s=300)),
    ],
)
def test_fleets_that_keep_the_slo_cost_no_less(slo: Slo, load: Workload) -> None:
    below = clairvoyant_bound(load, latency(), ENGINE, slo)
    assert below >= 24, "one replica is always there"
    kept = []
    for size in (1, 2, 3, 4, 5):
        result = simulate(plan(slo=slo, replicas=size), load, latency(), seeds=(0,))
        if result.keeps_slo:
            kept.append(result.metrics["gpu_hours"].value)
    assert kept
    assert below <= min(kept)


def test_the_bound_follows_what_is_asked() -> None:
    load, slo = workload(rate_rps=60, duration_s=300), Slo(ttft_p99_s=0.5)
    usual = clairvoyant_bound(load, latency(), ENGINE, slo)
    assert clairvoyant_bound(load, latency(), ENGINE, slo, gpus_per_replica=2) == 2 * usual
    assert clairvoyant_bound(load, latency(), ENGINE, slo, least=0) <= usual
    lenient = Slo(ttft_p99_s=0.5, max_error_share=0.3)
    assert clairvoyant_bound(load, latency(), ENGINE, lenient) < usual
    busy = workload(rate_rps=200, duration_s=300)
    tight = Slo(ttft_p99_s=0.5, tpot_p99_s=0.0062)
    assert clairvoyant_bound(busy, latency(), ENGINE, tight) > clairvoyant_bound(
        busy, latency(), ENGINE, slo
    ), "smaller batches are dearer"
    slower = latency(per_token_s=4.8e-5)
    assert clairvoyant_bound(load, slower, ENGINE, slo) > usual
