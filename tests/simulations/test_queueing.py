"""The twin in the limits in which queueing theory knows the answer: M/M/1 and processor sharing.

Theory must lie inside the interval over replications, and the interval must be narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from serving.plan import EngineArgs
from simulations.engine import estimate, simulate_replica
from simulations.traffic import Schedule
from tests.simulations.models import latency

STEP_S = 1e-3
MEAN_TOKENS = 200
WARMED = 2_000
Draw = Callable[[int, np.random.Generator], npt.NDArray[np.int64]]


def fixed(n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return np.full(n, MEAN_TOKENS)


def exponential(n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.geometric(1 / MEAN_TOKENS, n)


def few_long(n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Nine in ten of 100 tokens, one of 1,100: squared coefficient of variation 2.25."""
    return np.where(rng.random(n) < 0.9, 100, 1_100)


def served(
    rho: float, draw: Draw, n: int, seed: int, engine: EngineArgs, **costs: Any
) -> pd.DataFrame:
    """Poisson arrivals at a load of rho, where a token of a lone request takes a step."""
    rng = np.random.default_rng(seed)
    free = {"floor_s": 0, "base_s": 0, "per_token_s": 0, "per_seq_s": 0, "per_kv_token_s": 0}
    overheads = {"step_overhead_s": 0, "request_overhead_s": 0}
    model = latency(**(free | overheads | costs), kv_blocks=10**6)
    arrived_at_s = np.cumsum(rng.exponential(MEAN_TOKENS * STEP_S / rho, n))
    drawn = Schedule(arrived_at_s, np.ones(n, dtype=np.int64), draw(n, rng))
    return simulate_replica(drawn, model, engine)[WARMED:]


def replicated(found: Callable[[int], float], times: int) -> tuple[float, float, float]:
    over = estimate([found(seed) for seed in range(times)])
    return over.value, over.low, over.high


def test_the_time_in_the_system_is_that_of_m_m_1() -> None:
    """Exponential outputs one at a time: sojourn times are exponential with rate mu - lambda."""
    rho = 0.6
    engine = EngineArgs(max_model_len=10**5, max_num_seqs=1, max_num_batched_tokens=64)
    runs = [served(rho, exponential, 80_000, s, engine, base_s=STEP_S)["e2e_s"] for s in range(10)]
    mean_s = MEAN_TOKENS * STEP_S / (1 - rho)
    for of, theory_s in (
        (lambda e2e_s: float(e2e_s.mean()), mean_s),
        (lambda e2e_s: float(e2e_s.quantile(0.5)), mean_s * np.log(2)),
        (lambda e2e_s: float(e2e_s.quantile(0.95)), mean_s * np.log(20)),
    ):
        value, low, high = replicated(lambda seed, of=of: of(runs[seed]), len(runs))
        assert low < theory_s < high
        assert high - low < 0.04 * value


SHARED = EngineArgs(max_model_len=10**5, max_num_seqs=512, max_num_batched_tokens=10**5)


@pytest.mark.parametrize("draw", [fixed, exponential, few_long])
def test_a_step_as_long_as_its_batch_shares_the_processor(draw: Draw) -> None:
    """Mean sojourn = mean service / (1 - rho), whatever the law of the lengths: M/G/1-PS.

    An arrival waits for the end of the step in progress, in which it has no share: half a step of
    the sequences that it finds, of which M/G/1-PS has rho / (1 - rho) in the mean.
    """
    rho = 0.5
    in_step_s = STEP_S * rho / (1 - rho) / 2
    theory_s = MEAN_TOKENS * STEP_S / (1 - rho) + in_step_s

    def mean_s(seed: int) -> float:
        return float(served(rho, draw, 50_000, seed, SHARED, per_seq_s=STEP_S)["e2e_s"].mean())

    value, low, high = replicated(mean_s, 10)
    assert low < theory_s < high
    assert high - low < 0.04 * value


def test_sharing_slows_every_length_alike() -> None:
    """In processor sharing a request of x seconds takes x / (1 - rho) in the mean, long or short."""
    rho = 0.5

    def slowdowns(seed: int) -> tuple[float, float]:
        found = served(rho, few_long, 60_000, seed, SHARED, per_seq_s=STEP_S)
        stretch = found["e2e_s"] / (found["output_tokens"] * STEP_S)
        long = found["output_tokens"] > MEAN_TOKENS
        return float(stretch[~long].mean()), float(stretch[long].mean())

    found = [slowdowns(seed) for seed in range(10)]
    for kind in (0, 1):
        value, low, high = replicated(lambda seed, kind=kind: found[seed][kind], len(found))
        # A short one waits half a step of one sequence for 100 of its own.
        theory = 1 / (1 - rho) + (1 - kind) * rho / (1 - rho) / 2 / 100
        assert low < theory < high
        assert high - low < 0.04 * value
