"""A fleet in the limits in which queueing theory knows the answer, and the same answer however it is run.

A replica that runs one sequence at a time is a server; an output of a geometric number of tokens, each
a step, is an exponential service. The gateway never holds what a replica could take: it gives a request
to a replica at once, which has its own queue. So the central queue of M/M/c is that of one replica with
c sequences, whose steps take as long whatever they hold.

Theory must lie inside the interval over replications, and the interval must be narrow.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from math import factorial
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import brentq
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from serving.gateway.spec import GatewaySpec
from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import EngineArgs
from simulations.autoscaler import HpaController
from simulations.engine import DataPlane, SchedulerOptions, estimate, request_frame
from simulations.fleet import Cluster, Fleet
from simulations.latency import LatencyModel
from simulations.simulate import phases, simulate
from simulations.traffic import Schedule
from tests.simulations.models import latency, plan, workload

STEP_S = 1e-3
TOKENS = 200
MEAN_S = TOKENS * STEP_S
WARMED = 2_000
REPLICATIONS = 8
IntArray = npt.NDArray[np.int64]


def steady(**changes: Any) -> LatencyModel:
    """Every step takes the same time, and nothing else takes any."""
    free = {"floor_s": 0, "per_token_s": 0, "per_seq_s": 0, "per_kv_token_s": 0}
    overheads = {"step_overhead_s": 0, "request_overhead_s": 0}
    return latency(**(free | overheads | {"base_s": STEP_S, "kv_blocks": 10**6} | changes))


def engine(seqs: int) -> EngineArgs:
    return EngineArgs(max_model_len=10**5, max_num_seqs=seqs, max_num_batched_tokens=64)


def exponential(n: int, rng: np.random.Generator) -> IntArray:
    return rng.geometric(1 / TOKENS, n)


def few_long(n: int, rng: np.random.Generator) -> IntArray:
    """Nine in ten of 100 tokens, one of 1,100: squared coefficient of variation 2.25."""
    return np.where(rng.random(n) < 0.9, 100, 1_100)


def sojourn_s(
    servers: int,
    rho: float,
    n: int,
    seed: int,
    *,
    seqs: int = 1,
    gateway: GatewaySpec | None = None,
    draw: Any = exponential,
    split: bool = False,
) -> float:
    """Mean time in the system of Poisson arrivals at a load of rho on servers x seqs.

    Args:    split: half of the requests at random to each of two servers, whatever they hold.
    """
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(MEAN_S / (rho * servers * seqs), n))
    drawn = Schedule(at_s, np.ones(n, dtype=np.int64), draw(n, rng))
    model = steady()
    data = DataPlane(
        drawn, model, SchedulerOptions.of(engine(seqs), model), gateway=gateway, seed=seed
    )
    rows = [data.add() for _ in range(servers)]
    if split:
        data.advance(float(at_s[-1]) + 3600, rows[:1], rows[1:], 0.5)
    else:
        data.advance(float(at_s[-1]) + 3600, rows)
    found = request_frame(data.requests)
    assert (found["outcome"] == "answered").all()
    return float(found["e2e_s"][WARMED:].mean())


def agrees(theory_s: float, narrow: float, servers: int, rho: float, n: int, **how: Any) -> None:
    found = estimate([sojourn_s(servers, rho, n, s, **how) for s in range(REPLICATIONS)])
    assert found.low < theory_s < found.high, (theory_s, str(found))
    assert found.high - found.low < narrow * found.value


@pytest.mark.parametrize(("servers", "rho"), [(4, 0.7), (16, 0.8)])
def test_one_queue_before_many_servers_is_m_m_c(servers: int, rho: float) -> None:
    """Mean wait = C(c, a) / (c mu - lambda), C by Erlang.

    A request that finds a seat free but the others at work waits for the end of their step, half of
    one in the mean.
    """
    offered = servers * rho
    below = [offered**k / factorial(k) for k in range(servers)]
    last = offered**servers / factorial(servers) / (1 - rho)
    waits = last / (sum(below) + last)
    in_step_s = STEP_S / 2 * sum(below[1:]) / (sum(below) + last)
    theory_s = MEAN_S + waits * MEAN_S / (servers * (1 - rho)) + in_step_s
    agrees(theory_s, 0.05, 1, rho, 40_000, seqs=servers)


def shortest_queue_s(rho: float, most: int = 40) -> float:
    """Mean time in the system of two servers, exponential in all, the shorter queue joined.

    Balance equations of the chain of both queues, cut off at `most`, and Little's law.
    """
    size = most + 1
    flow = lil_matrix((size * size, size * size))
    rate = 2 * rho

    def at(a: int, b: int) -> int:
        return a * size + b

    for a in range(size):
        for b in range(size):
            to: list[tuple[float, int]] = []
            joins = [(a + 1, b)] if a < b else [(a, b + 1)] if b < a else [(a + 1, b), (a, b + 1)]
            for x, y in joins:
                if max(x, y) <= most:
                    to.append((rate / len(joins), at(x, y)))
            if a:
                to.append((1.0, at(a - 1, b)))
            if b:
                to.append((1.0, at(a, b - 1)))
            for speed, target in to:
                flow[target, at(a, b)] += speed
                flow[at(a, b), at(a, b)] -= speed
    flow[0, :] = 1.0
    right = np.zeros(size * size)
    right[0] = 1.0
    share = spsolve(flow.tocsc(), right)
    held = np.add.outer(np.arange(size), np.arange(size)).ravel()
    return MEAN_S * float(share @ held) / rate


def test_the_least_outstanding_replica_is_the_shortest_queue() -> None:
    """Within what the chain says, and between one queue for both and two that are drawn at random."""
    rho = 0.7
    theory_s = shortest_queue_s(rho)
    one_queue_s = MEAN_S / (1 - rho**2)
    assert one_queue_s < theory_s < MEAN_S / (1 - rho)
    agrees(theory_s, 0.05, 2, rho, 40_000)


def test_turns_make_the_arrivals_at_each_replica_more_regular() -> None:
    """Round robin over two: each gets every second arrival, E2/M/1, a root of A*(mu - mu z) = z."""
    rho = 0.7
    root = brentq(lambda z: (2 * rho / (2 * rho + 1 - z)) ** 2 - z, 0.0, 1 - 1e-9)
    agrees(MEAN_S / (1 - root), 0.06, 2, rho, 40_000, gateway=GatewaySpec(balancing="round_robin"))


def test_a_random_split_is_m_g_1() -> None:
    """Pollaczek and Khinchine, with lengths of which one in ten is eleven times the others."""
    rho, variation = 0.5, 2.25
    wait_s = rho / (1 - rho) * (1 + variation) / 2 * MEAN_S
    agrees(MEAN_S + wait_s, 0.06, 2, rho, 50_000, draw=few_long, split=True)


def autoscaled() -> Any:
    spec = HpaSpec(max_replicas=6, metrics=(pods_metric(REQUESTS_RUNNING, 8),))
    return plan(hpa=spec)


def gap(seed: int) -> tuple[float, float, int]:
    """Requests in the fleet by its scrapes, less arrivals x their mean time; both, over an hour."""
    lasts_s = 3_600.0
    load = workload(rate_rps=25, duration_s=lasts_s)
    a_plan, model = autoscaled(), latency(request_overhead_s=0.0)
    fleet = Fleet(
        a_plan,
        load.at(seed=seed).schedule(),
        model,
        Cluster(),
        HpaController(a_plan.hpa),
        duration_s=lasts_s,
        rng=phases(seed),
    )
    timeline = fleet.run()
    done = request_frame(fleet.data.requests, asked_s=fleet.data.asked_s)
    within_s = np.minimum(done["end_s"].to_numpy(), lasts_s) - done["arrived_at_s"].to_numpy()
    seen = float((timeline["requests_running"] + timeline["requests_waiting"]).mean())
    return seen, float(within_s.sum() / lasts_s), fleet.scale_events


def test_littles_law_holds_over_a_fleet_that_scales() -> None:
    found = [gap(seed) for seed in range(REPLICATIONS)]
    assert min(events for *_, events in found) > 1
    difference = estimate([seen - law for seen, law, _ in found])
    assert difference.low < 0 < difference.high, str(difference)
    assert difference.high - difference.low < 0.06 * np.mean([law for _, law, _ in found])


def a_day(seed: int) -> dict[str, float]:
    load = workload(rate_rps=25, duration_s=900)
    return {
        name: one.value
        for name, one in simulate(autoscaled(), load, latency(), seeds=(seed,)).metrics.items()
    }


def test_seeds_in_processes_are_seeds_in_turn_and_a_seed_is_itself() -> None:
    seeds = (0, 1, 2)
    in_turn = [a_day(seed) for seed in seeds]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        at_once = list(pool.map(a_day, reversed(seeds)))
    assert at_once[::-1] == in_turn
    assert a_day(1) == in_turn[1]
    assert in_turn[0]["e2e_p50_s"] != in_turn[1]["e2e_p50_s"]
