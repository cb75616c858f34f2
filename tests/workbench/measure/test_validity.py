"""The validity gate: each reason fires where it should, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulations.traffic import ClosedLoop, Fixed, Gamma, Poisson, Schedule, Segments, Workload
from workbench.measure.engine import Step, requests_frame, steps_frame
from workbench.measure.outcome import Outcome
from workbench.measure.validity import NOT_STEADY, Evidence, doubts, reusable_tokens

OPEN = Workload(
    arrivals=Poisson(rate_rps=10), prompt_tokens=Fixed(tokens=1), output_tokens=Fixed(tokens=1)
)
CLOSED = OPEN.at(arrivals=ClosedLoop(concurrency=2, requests=40))


def table(n: int = 40, gap_s: float = 0.1, e2e_s: float = 0.1) -> pd.DataFrame:
    return requests_frame(
        [
            Outcome(i, i * gap_s, 1, 1, i * gap_s + 1e-4, i * gap_s + e2e_s, i * gap_s + e2e_s, 1)
            for i in range(n)
        ]
    )


def why(
    requests: pd.DataFrame, workload: Workload = OPEN, *, server: bool = True, **more: Any
) -> list[str]:
    steps = more.pop("steps", steps_frame([]))
    return doubts(Evidence(requests, steps, workload, server, **more))


def test_a_sound_run_is_not_doubted() -> None:
    assert why(table()) == []


def test_errors_name_the_commonest() -> None:
    bad = table()
    bad.loc[[3, 5, 7], "error"] = ["timed out", "HTTP 500: no blocks", "HTTP 500: no blocks"]
    [reason] = why(bad)
    assert reason == "3 of 40 requests failed: HTTP 500: no blocks"


def test_errors_within_the_warm_up_do_not_count() -> None:
    bad = table(60)
    bad.loc[3, "error"] = "HTTP 500"
    bad["counted"] = bad["scheduled_s"] >= 1
    assert why(bad) == []


def test_other_lengths_than_asked() -> None:
    bad = table()
    bad.loc[3, "output_tokens"] = 0
    [reason] = why(bad)
    assert "another length than asked (the first: 0 for 1 tokens)" in reason


def test_too_few_requests_behind_a_server() -> None:
    [reason] = why(table(19))
    assert reason.startswith("19 requests are too few")
    assert why(table(20)) == []
    assert why(table(4), CLOSED, server=False) == []
    assert why(table(0), CLOSED, server=False) == ["no request was counted"]


def test_a_load_shorter_than_two_requests_is_too_short() -> None:
    assert why(table(60, e2e_s=2.9)) == []
    [reason] = why(table(60, e2e_s=3.0))
    assert reason.startswith("too short: 5.9 s of load for requests of 3.0 s")
    assert why(table(60, e2e_s=3.0), server=False) == []


@pytest.mark.parametrize(
    ("late_s", "gap_s", "refused"),
    [
        (0.004, 0.001, False),  # under 5 ms is never late
        (0.006, 0.001, True),
        (0.009, 0.1, False),  # under a tenth of the mean gap
        (0.011, 0.1, True),
    ],
)
def test_a_client_that_sends_late(late_s: float, gap_s: float, refused: bool) -> None:
    late = table(400, gap_s)
    late["sent_s"] = late["scheduled_s"] + late_s
    found = why(late)
    assert bool(found) == refused
    assert not refused or "the client sent late" in found[0]
    # In a closed loop nobody waits for the client, and offline a step must end first.
    assert why(late, CLOSED) == []
    assert why(late, server=False) == []


def test_one_late_request_in_many_is_forgiven() -> None:
    late = table(400)
    late.loc[7, "sent_s"] += 1
    assert np.ptp(late["sent_s"] - late["scheduled_s"]) > 0.9
    assert why(late) == []


def test_a_client_that_reads_late() -> None:
    assert why(table(), CLOSED, client={"lag_p99_s": 0.009, "cpu_share": 0.5}) == []
    [reason] = why(table(), CLOSED, client={"lag_p99_s": 0.02, "cpu_share": 0.98})
    assert reason.startswith("the client could not keep up (p99 20.0 ms behind, at 98% of a core)")


def queue(rate_rps: float, service_s: float, n: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Requests through one server with exponential service times."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_rps, n))
    free_s, outcomes = 0.0, []
    for i, (arrived_s, took_s) in enumerate(zip(at_s, rng.exponential(service_s, n), strict=True)):
        free_s = max(free_s, arrived_s) + took_s
        outcomes.append(Outcome(i, arrived_s, 1, 1, arrived_s, free_s, free_s, 1))
    return requests_frame(outcomes)


def test_a_server_that_falls_behind_is_not_steady() -> None:
    """At 1.3 times what it can do its queue grows by 23 % of what arrives, at 0.7 by nothing."""
    flagged = {
        load: sum(
            any(reason.startswith(NOT_STEADY) for reason in why(queue(load, 1.0, seed=seed)))
            for seed in range(20)
        )
        for load in (0.7, 1.3)
    }
    assert flagged[1.3] >= 19
    assert flagged[0.7] <= 1


def test_a_load_that_is_meant_to_change_is_not_called_unsteady() -> None:
    overloaded = queue(1.5, 1.0)
    assert any(
        NOT_STEADY in reason
        for reason in why(overloaded, OPEN.at(arrivals=Gamma(rate_rps=1, burstiness=1)))
    )
    assert not any(NOT_STEADY in reason for reason in why(overloaded, CLOSED))


def test_cache_hits_beyond_what_the_run_shares_itself() -> None:
    assert why(table(), cached_tokens=0) == []
    assert why(table(), cached_tokens=None) == []
    assert why(table(), cached_tokens=64, reusable_tokens=64) == []
    [reason] = why(table(), cached_tokens=80, reusable_tokens=64)
    assert reason.startswith("16 prompt tokens came from the prefix cache of an earlier run")


def test_what_a_schedule_can_reuse_of_itself() -> None:
    """Requests 1 and 2 share 8 + 4 tokens with 0; 3 begins otherwise; 4 follows the answer of 0."""
    segments = (
        ((7, 8), (8, 4)),
        ((7, 8), (8, 4), (9, 5)),
        ((7, 8), (8, 4), (10, 5)),
        ((8, 4), (7, 8)),
        ((7, 8), (8, 4), (-1, 6), (11, 3)),
    )
    n = len(segments)
    prompt = np.array([sum(tokens for _, tokens in one) for one in segments])
    drawn = Schedule(
        np.arange(n, dtype=float),
        prompt,
        np.ones(n, dtype=np.int64),
        segments=Segments.of(segments),
    )
    assert reusable_tokens(drawn) == 12 + 12 + 0 + 18
    assert reusable_tokens(Schedule(drawn.arrived_at_s, prompt, drawn.output_tokens)) == 0


def test_a_storm_of_preemptions() -> None:
    def steps(preempted: int) -> pd.DataFrame:
        return steps_frame([Step(0.1, 0.1, 0.0, 1, 1, 0, 1, 1, 0, preempted)])

    assert why(table(), steps=steps(4)) == []
    [reason] = why(table(), steps=steps(5))
    assert reason.startswith("5 preemptions for 40 requests")


def test_a_throttled_gpu() -> None:
    assert why(table(), telemetry={"throttled_share": 0.01, "power_capped_share": 0.9}) == []
    [reason] = why(table(), telemetry={"throttled_share": 0.2})
    assert "throttled by heat or power for 20%" in reason
