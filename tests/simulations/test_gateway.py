"""What stands between clients and replicas: balancing, limits, retries, the result cache, canaries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from serving.gateway.spec import BALANCING, GatewaySpec, ResultCache
from simulations.engine import (
    BUCKETS_S,
    DataPlane,
    Reading,
    SchedulerOptions,
    request_frame,
)
from simulations.traffic import Clients, Schedule, Segments
from tests.simulations.models import latency

OPTIONS = SchedulerOptions(max_seqs=16, max_step_tokens=512)
ENDS = {"answered", "cached", "aborted", "rejected", "failed"}


def drawn(
    n: int = 400, rate_rps: float = 20.0, seed: int = 0, tokens: int = 60, **changes: Any
) -> Schedule:
    """Poisson arrivals of short requests."""
    rng = np.random.default_rng(seed)
    return Schedule(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        rng.integers(1, tokens, n),
        rng.integers(1, tokens, n),
        **changes,
    )


def plane(schedule: Schedule, gateway: GatewaySpec | None = None, **changes: Any) -> DataPlane:
    return DataPlane(
        schedule, latency(), OPTIONS, gateway=gateway, noise=False, histograms=True, **changes
    )


def outcome(data: DataPlane) -> pd.DataFrame:
    """The table of requests, with who served them."""
    found = request_frame(data.requests, asked_s=data.asked_s)
    return found.assign(
        **{name: data.requests[name] for name in ("attempts", "replica", "version", "sent_s")}
    )


def served(
    schedule: Schedule, gateway: GatewaySpec | None = None, replicas: int = 3, **changes: Any
) -> tuple[pd.DataFrame, list[Reading], DataPlane]:
    """All of it on some replicas, until nothing is left."""
    data = plane(schedule, gateway, **changes)
    rows = [data.add() for _ in range(replicas)]
    data.advance(1e6, rows)
    return outcome(data), [data.read(row) for row in rows], data


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10**6),
    balancing=st.sampled_from(BALANCING),
    most=st.sampled_from([None, 1, 3]),
    retries=st.integers(0, 3),
    backoff_s=st.sampled_from([0.0, 0.001, 0.3]),
    cache=st.sampled_from([None, 1, 3, 100]),
    patience_s=st.sampled_from([0.002, 0.05, 1.0, np.inf]),
    timeout_s=st.sampled_from([0.003, 0.1, None]),
    error_share=st.sampled_from([0.0, 0.2]),
    priority=st.booleans(),
    in_flight=st.booleans(),
    crash_s=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_every_request_ends_once_and_leaves_nothing_behind(
    seed: int,
    balancing: str,
    most: int | None,
    retries: int,
    backoff_s: float,
    cache: int | None,
    patience_s: float,
    timeout_s: float | None,
    error_share: float,
    priority: bool,
    in_flight: bool,
    crash_s: float,
) -> None:
    """Whatever is on: crashes, retries, time-outs, limits, priorities and a step in flight."""
    rng = np.random.default_rng(seed)
    n = 150
    schedule = drawn(
        n,
        60.0,
        seed,
        key=rng.integers(-1, 6, n),
        patience_s=np.where(rng.random(n) < 0.5, patience_s, np.inf),
        priority=rng.integers(0, 3, n),
        clients=Clients(timeout_s=timeout_s, max_retries=retries, backoff_s=backoff_s),
    )
    gateway = GatewaySpec.model_validate(
        {
            "balancing": balancing,
            "max_outstanding": most,
            "result_cache": None if cache is None else ResultCache(size=cache, ttl_s=1.0),
        }
    )
    model = latency(kv_blocks=60, block_size_tokens=4)  # some are preempted
    options = OPTIONS.model_copy(
        update={"priority": priority, "async_scheduling": in_flight, "block_size": 4}
    )
    data = DataPlane(schedule, model, options, gateway=gateway, noise=False, histograms=True)
    rows = [data.add(error_share=error_share), data.add(slowdown=2.0), data.add()]
    data.advance(crash_s, rows)
    lost = data.fail(rows[0])
    assert lost.running + lost.waiting == data.read(rows[0]).failed == 0 or lost.running >= 0
    data.advance(crash_s + 0.2, [])  # some wait at the gateway
    data.advance(1e6, rows[1:])
    found = outcome(data)
    assert set(found["outcome"]) <= ENDS
    assert data.at_gateway == 0
    assert (found["attempts"].between(1, retries + 1)).all()
    kept = [data.read(row) for row in rows[1:]]
    assert all(r.running == r.waiting == 0 and r.kv_usage == 0 for r in kept)
    counted = [lost, *kept]
    assert sum(r.finished for r in counted) == (found["outcome"] == "answered").sum()
    assert data.cache_hits == (found["outcome"] == "cached").sum()
    done = found[found["outcome"].isin(["answered", "cached"])]
    assert (done["end_s"] >= done["first_token_s"]).all()
    assert (done["first_token_s"] > done["arrived_at_s"]).all()
    np.testing.assert_allclose(found["arrived_at_s"], schedule.arrived_at_s)
    given_up = found["outcome"].isin(["rejected", "failed", "aborted"])
    patient = np.isinf(schedule.patience_s) if schedule.patience_s is not None else True
    assert (found.loc[given_up & patient, "attempts"] == retries + 1).all()


def test_without_a_gateway_nothing_changes() -> None:
    """Options that do not bind leave every time as it was."""
    plain, _, _ = served(drawn())
    patient = drawn(
        key=np.full(400, -1), clients=Clients(timeout_s=1e5), patience_s=np.full(400, 1e6)
    )
    found, _, _ = served(patient, GatewaySpec(max_outstanding=10**6, result_cache=ResultCache()))
    pd.testing.assert_frame_equal(found, plain)


def test_retries_wait_longer_each_time() -> None:
    clients = Clients(timeout_s=None, max_retries=4, backoff_s=2.0, max_backoff_s=6.0, jitter=0.5)
    data = plane(drawn(50, clients=clients))
    data.advance(1e6, [data.add(error_share=1.0)])
    found = outcome(data)
    assert (found["outcome"] == "failed").all()
    assert (found["attempts"] == 5).all()
    # 2, 4, 6 and 6 s, each less up to a half.
    pauses_s = (found["sent_s"] - found["arrived_at_s"]).to_numpy()
    assert pauses_s.min() >= 9.0
    assert pauses_s.max() <= 18.0
    assert pauses_s.std() > 1.0


def test_a_crash_fails_what_the_replica_holds_and_retries_find_another() -> None:
    for retries in (0, 1):
        clients = Clients(timeout_s=None, max_retries=retries, backoff_s=0.1)
        data = plane(drawn(200, 50.0, clients=clients))
        first, second = data.add(), data.add()
        data.advance(2.0, [first, second])
        before = data.read(first)
        lost = data.fail(first)
        data.advance(1e6, [second])
        found = outcome(data)
        assert before.running + before.waiting > 0
        assert (found["outcome"] == "failed").sum() == (
            0 if retries else before.running + before.waiting
        )
        assert (found["attempts"] == 2).sum() == (before.running + before.waiting if retries else 0)
        assert lost.finished + data.read(second).finished == (found["outcome"] == "answered").sum()
        with pytest.raises(ValueError, match="not in list"):
            data.remove(first)


def test_the_row_of_a_dead_replica_starts_anew() -> None:
    schedule = drawn(300, 50.0)
    data = plane(schedule)
    row = data.add()
    data.advance(2.0, [row])
    data.fail(row)
    again = data.add(version=7)
    assert again == row
    data.advance(1e6, [again])
    found = outcome(data)
    late = found[found["arrived_at_s"] >= 2.0]
    assert (late["outcome"] == "answered").all()
    assert set(late["version"]) == {7}
    assert set(late["replica"]) == {1}
    assert data.read(again).finished == len(late)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), ttl_s=st.sampled_from([0.2, 1.0, 100.0]))
def test_a_question_is_answered_from_the_cache_iff_its_answer_is_fresh(
    seed: int, ttl_s: float
) -> None:
    """With room for all: by the time of the last answer from a replica."""
    rng = np.random.default_rng(seed)
    schedule = drawn(200, 40.0, seed, key=rng.integers(-1, 8, 200))
    found, _, data = served(schedule, GatewaySpec(result_cache=ResultCache(size=8, ttl_s=ttl_s)))
    assert schedule.key is not None
    found = found.assign(key=schedule.key)
    fresh = []
    for row in found.itertuples():
        same = found[(found["key"] == row.key) & (found["outcome"] == "answered")]
        ended_s = same.loc[same["end_s"] <= row.arrived_at_s, "end_s"]
        last_s = ended_s.max() if len(ended_s) else -np.inf
        fresh.append(row.key >= 0 and last_s + ttl_s > row.arrived_at_s)
    assert (np.array(fresh) == (found["outcome"] == "cached")).all()
    assert data.cache_hits == sum(fresh)
    hits = found[found["outcome"] == "cached"]
    np.testing.assert_allclose(hits["e2e_s"], 0.002)


def test_the_least_recently_used_answer_goes_first() -> None:
    """Room for two: a, b, a again, then c drives out b."""
    keys = np.array([0, 1, 0, 2, 0, 1])
    schedule = Schedule(
        np.arange(6) * 10.0, np.full(6, 8), np.full(6, 4), key=keys.astype(np.int64)
    )
    found, _, _ = served(schedule, GatewaySpec(result_cache=ResultCache(size=2)), replicas=1)
    assert found["outcome"].tolist() == [
        *("answered", "answered", "cached", "answered", "cached", "answered")
    ]


def test_a_full_fleet_answers_503() -> None:
    schedule = drawn(300, 300.0)
    found, readings, data = served(schedule, GatewaySpec(max_outstanding=4), replicas=2)
    refused = found["outcome"] == "rejected"
    assert 0 < refused.sum() == data.refused < 300
    # At no time more than four at a replica.
    for replica in (0, 1):
        mine = found[(found["replica"] == replica) & ~refused]
        starts_s, ends_s = mine["arrived_at_s"].to_numpy(), np.sort(mine["end_s"])
        at_once = np.arange(1, len(mine) + 1) - np.searchsorted(ends_s, starts_s, side="right")
        assert at_once.max() == 4
    assert sum(r.rejected for r in readings) == 0


def test_round_robin_takes_turns() -> None:
    found, _, _ = served(drawn(), GatewaySpec(balancing="round_robin"))
    counts = found["replica"].value_counts()
    assert counts.max() - counts.min() <= 1
    assert found["replica"].iloc[:6].tolist() == [1, 2, 0, 1, 2, 0]


def test_fewest_outstanding_never_makes_longer_queues_than_two_choices_and_those_than_chance() -> (
    None
):
    """Mitzenmacher 2001: the second choice does most of it."""
    schedule = drawn(6000, 250.0)
    worst = {}
    for balancing in ("least_outstanding", "two_choices", "round_robin"):
        found, _, _ = served(
            schedule, GatewaySpec.model_validate({"balancing": balancing}), replicas=8
        )
        worst[balancing] = float(found["e2e_s"].mean())
    assert worst["least_outstanding"] <= worst["two_choices"] * 1.001
    assert worst["two_choices"] < worst["round_robin"]


def test_prompts_that_begin_alike_meet_until_their_replica_is_overloaded() -> None:
    n = 600
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, n)
    segments = Segments.of(((int(g), 20), (100 + i, 5)) for i, g in enumerate(group))
    for rate_rps, at_least in ((2.0, 0.9), (400.0, 0.2)):
        schedule = Schedule(
            np.cumsum(rng.exponential(1 / rate_rps, n)),
            np.full(n, 25),
            np.full(n, 20),
            segments=segments,
        )
        found, _, _ = served(schedule, GatewaySpec(balancing="prefix_hash"), replicas=4)
        table = pd.crosstab(group, found["replica"])
        alike = table.max(axis=1).sum() / n
        assert alike >= at_least
        if rate_rps > 100:  # the bound holds the load together
            assert found["replica"].value_counts().max() < 1.3 * n / 4


def test_a_canary_gets_its_share_of_conversations_and_keeps_them() -> None:
    n = 5000
    conversation = np.arange(n) // 5
    schedule = drawn(n, 100.0, conversation=conversation)
    data = plane(schedule)
    stable, canary = data.add(version=1), data.add(version=2)
    data.advance(1e6, [stable], [canary], 0.1)
    found = outcome(data)
    on_canary = (found["version"] == 2).groupby(conversation).agg(["min", "max"])
    assert (on_canary["min"] == on_canary["max"]).all()
    low, high = stats.binom.ppf([0.001, 0.999], n // 5, 0.1)
    assert low <= on_canary["max"].sum() <= high


def test_a_slow_replica_takes_its_factor() -> None:
    schedule = Schedule(np.array([0.0]), np.array([100]), np.array([50]))
    times_s = []
    for slowdown in (1.0, 3.0):
        data = plane(schedule)
        data.advance(1e6, [data.add(slowdown=slowdown)])
        times_s.append(data.read(0).busy_s)
    assert times_s[1] == pytest.approx(3 * times_s[0])


def test_a_share_of_requests_fails_at_once() -> None:
    data = plane(drawn(4000, 50.0))
    data.advance(1e6, [data.add(error_share=0.05)])
    found = outcome(data)
    failed = found["outcome"] == "failed"
    low, high = stats.binom.ppf([0.001, 0.999], 4000, 0.05)
    assert low <= failed.sum() <= high
    assert data.read(0).failed == failed.sum()
    assert set(found.loc[~failed, "outcome"]) == {"answered"}


def test_counters_and_histograms_are_those_of_the_requests() -> None:
    found, readings, _ = served(drawn(500, 60.0, tokens=200))
    answered = found[found["outcome"] == "answered"]
    assert sum(r.prompt_tokens for r in readings) == answered["prompt_tokens"].sum()
    assert sum(r.generation_tokens for r in readings) == answered["output_tokens"].sum()
    values = {
        "ttft": answered["ttft_s"],
        "e2e": answered["e2e_s"],
        "tpot": answered["tpot_s"].fillna(0.0),
    }
    for name, seen in values.items():
        edges = [-np.inf, *BUCKETS_S[name], np.inf]
        # Prometheus' buckets hold their upper edge.
        wanted = pd.cut(seen, edges, labels=False).value_counts().reindex(range(len(edges) - 1))
        counted = sum(r.histograms[name] for r in readings)
        np.testing.assert_array_equal(counted, wanted.fillna(0))
        sums = sum(getattr(r, f"{name}_sum_s") for r in readings)
        assert sums == pytest.approx(seen.sum())
    waited = sum(r.histograms["queue"].sum() for r in readings)
    assert waited == len(answered)
    assert 0 < sum(r.queue_sum_s for r in readings) < answered["ttft_s"].sum()


def test_who_waits_at_the_gateway_too_long_gives_up_there() -> None:
    schedule = drawn(20, 20.0, patience_s=np.full(20, 3.0))
    data = plane(schedule)
    row = data.add()
    data.advance(10.0, [])
    assert data.at_gateway == 20
    data.advance(1e6, [row])
    assert set(outcome(data)["outcome"]) == {"aborted"}


def test_a_user_out_of_patience_does_not_come_back() -> None:
    clients = Clients(timeout_s=1.0, max_retries=10, backoff_s=1.0, max_backoff_s=1.0, jitter=0.0)
    n = 60
    schedule = Schedule(
        np.zeros(n), np.full(n, 200), np.full(n, 2000), patience_s=np.full(n, 3.5), clients=clients
    )
    found, _, _ = served(schedule, replicas=1)
    # Sent at 0 and 2 s, each given up after 1 s; a third time would be sent at 4 s.
    assert set(found["outcome"]) == {"aborted"}
    assert set(found["attempts"]) == {2}
