"""Capacity under an SLO, against a queue whose capacity is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import InfeasibleError, InputError, MeasurementError
from serving.plan import EngineArgs, Slo, Variant
from simulations.traffic import Fixed, Poisson, Workload
from workbench.measure import FakeEngine, Request, Run
from workbench.measure.capacity import Capacity, attained, capacity
from workbench.measure.engine import OnProgress, requests_frame, steps_frame
from workbench.measure.outcome import Outcome

from .support import ENGINE

MU_RPS = 10.0
LIMIT_S = 1.0
ATTAINMENT = 0.9
# The time in an M/M/1 queue is exponential with rate mu - lambda.
TRUE_RPS = MU_RPS - log(1 / (1 - ATTAINMENT)) / LIMIT_S
LOAD = Workload(
    arrivals=Poisson(rate_rps=1),
    prompt_tokens=Fixed(tokens=4),
    output_tokens=Fixed(tokens=1),
    duration_s=300.0,
    warmup_s=20.0,
)
SLO = Slo(ttft_p99_s=None, e2e_p99_s=LIMIT_S)


class OneServer(FakeEngine):
    """First come first served, with exponential service times."""

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        self.runs += 1
        free_s, outcomes = 0.0, []
        for i, request in enumerate(requests):
            arrived_s = request.scheduled_s
            free_s = max(free_s, arrived_s) + float(self._rng.exponential(1 / MU_RPS))
            outcomes.append(Outcome(i, arrived_s, 4, 1, arrived_s, free_s, free_s, 1))
        return Run(requests_frame(outcomes), steps_frame([]))


def find(
    folder: Path, variant: Variant, seed: int = 0, **options: Any
) -> tuple[Capacity, list[OneServer]]:
    engines: list[OneServer] = []

    def start(variant: Variant, engine_args: EngineArgs, folder: Path) -> OneServer:
        engines.append(OneServer(variant, engine_args, seed=seed))
        return engines[-1]

    chosen = {"attainment": ATTAINMENT, "start_rps": 2.0, "precision": 0.1, **options}
    slo = chosen.pop("slo", SLO)
    found = capacity(
        variant,
        LOAD.at(seed=seed),
        slo,
        engine_args=ENGINE,
        folder=folder,
        start=start,
        **chosen,
    )
    return found, engines


def test_it_finds_the_capacity_of_a_queue(variant: Variant, tmp_path: Path) -> None:
    """In most of 12 tries the interval holds the truth, and the estimate lies near it."""
    found = [find(tmp_path / str(seed), variant, seed)[0] for seed in range(12)]
    holds = sum(one.low_rps <= TRUE_RPS <= one.high_rps for one in found)
    assert holds >= 10
    assert np.median([one.rate_rps for one in found]) == pytest.approx(TRUE_RPS, rel=0.08)
    assert all(one.low_rps <= one.rate_rps < one.high_rps for one in found)
    assert max(one.high_rps - one.low_rps for one in found) < 4
    # A scan at this precision, six runs at each rate, would take 6 ln(10) / ln(1.1) = 145.
    assert np.median([len(one.runs) for one in found]) <= 30


def test_a_stricter_promise_never_gives_more(variant: Variant, tmp_path: Path) -> None:
    strict, _ = find(tmp_path / "a", variant, slo=Slo(ttft_p99_s=None, e2e_p99_s=0.5))
    loose, _ = find(tmp_path / "b", variant)
    assert strict.rate_rps < loose.rate_rps


def test_it_goes_on_where_it_was(variant: Variant, tmp_path: Path) -> None:
    first, engines = find(tmp_path, variant)
    assert engines[0].runs == len(first.runs) + 1  # and the warm-up
    again, engines = find(tmp_path, variant)
    assert engines == []
    assert again.runs.equals(first.runs)
    assert Capacity.read(tmp_path / "capacity.json").runs.equals(first.runs)


def test_a_promise_that_is_never_kept_is_infeasible(variant: Variant, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="the SLO is broken even at"):
        find(tmp_path, variant, slo=Slo(ttft_p99_s=None, e2e_p99_s=1e-6), max_runs=400)


def test_too_few_runs_say_so(variant: Variant, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="found no rate that keeps the SLO"):
        find(tmp_path, variant, slo=Slo(ttft_p99_s=None, e2e_p99_s=1e-6), max_runs=3)


def test_bad_limits_are_refused(variant: Variant, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"attainment\(=1.5\)"):
        find(tmp_path, variant, attainment=1.5)


def test_without_a_broken_rate_the_upper_end_is_open(tmp_path: Path) -> None:
    written = Capacity(3.0, 2.0, inf, 0.9, 0.95, find_rows())
    again = Capacity.read(written.write(tmp_path / "capacity.json"))
    assert again.high_rps == inf


def find_rows() -> Any:
    import pandas as pd

    return pd.DataFrame([{"rate_rps": 2.0, "seed": 0, "requests": 5, "attainment": 1.0}])


def test_the_interval_of_independent_requests_is_wilsons() -> None:
    """380 of 380 good leave 1 % open: 380 / (380 + 1.96^2) = 0.99."""
    low, high = attained([38] * 10, [38] * 10)
    assert low == pytest.approx(0.99, abs=1e-4)
    assert high == pytest.approx(1.0)


def test_requests_that_fail_together_count_for_less() -> None:
    spread = attained([9] * 10, [10] * 10)
    clumped = attained([10] * 9 + [0], [10] * 10)
    assert clumped[1] - clumped[0] > 2 * (spread[1] - spread[0])


def test_the_interval_covers_the_truth_of_correlated_requests() -> None:
    """Blocks share a level: with 60 blocks the nominal 95 % interval holds it 90 times in 100."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        level = rng.beta(9, 1, 60)  # mean 0.9
        low, high = attained(rng.binomial(30, level).tolist(), [30] * 60)
        covered += low <= 0.9 <= high
    assert covered / 400 >= 0.9
