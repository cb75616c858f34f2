"""The engine twin: how many requests does it simulate a second, beside two peers in the same run?

    python -m benchmarks.twin [--full] [--aisimulate PYTHON]

PYTHON is an interpreter that has AISimulate's engine; its pins are not ours, so give it an environment:

    python3.11 -m venv .aisimulate && .aisimulate/bin/pip install --no-deps ai-dynamo-runtime==1.6.1

The load: Poisson arrivals at 80 % of what the engine can serve, prompts of 512 tokens and outputs of
256, an 8B model on one large GPU. Served by one replica, by one replica with the scheduler's features
switched on (prompts then share 128 of their 512 tokens with those of their group), and by eight.
Compiling is not counted in any of these; it is timed by itself, in processes of its own. All times are
of the CPU, since the machine may be busy and each run is one thread; memory is what is allocated.

What the time should depend on: every request is scheduled, takes its share of some steps and leaves,
so the cost of one must not grow with their number. What decodes in between is counted in rounds.

The peers simulate the same arrivals and lengths. The SimPy model (`simpy_replica.py`) takes the same
latency model, and its mean end-to-end latency has to agree with ours. AISimulate has latency models
of its own: it is given steps of one constant duration, chosen so that as many sequences run at a time
as in our load, and the twin is timed with the same.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.simpy_replica import SimpyReplica
from benchmarks.twin_load import (
    ALL,
    ENGINE,
    FEATURES,
    LATENCY,
    LOAD,
    OUTPUT,
    capacity_rps,
    draw,
    engine_with,
    fastest,
    features,
    one,
    show,
    timed,
)
from serving.plan import EngineArgs
from simulations.engine import DataPlane, SchedulerOptions, simulate_replica
from simulations.traffic import Schedule
from workbench.apart import Child, Link
from workbench.measure.environment import Environment

TARGETS = {
    "one replica, all features, requests/s": 300_000.0,
    "eight replicas, requests/s": 120_000.0,
    "CPU time of a request, most over fewest": 1.1,
    "bytes a request beside results": 100.0,
    "first call in a fresh cache, CPU s": 20.0,
    "first call in a warm cache, CPU s": 1.0,
}
AT_LEAST = ("one replica, all features, requests/s", "eight replicas, requests/s")

REPLICAS = 8
PEER_REQUESTS = 10_000


def serve_fleet(schedule: Schedule, engine: EngineArgs) -> None:
    """Eight replicas, to the least loaded of which each request goes, until all are answered."""
    plane = DataPlane(schedule, LATENCY, SchedulerOptions.of(engine, LATENCY))
    rows = [plane.add() for _ in range(REPLICAS)]
    plane.advance(float(schedule.arrived_at_s[-1]) + 3600, rows)
    left = sum(plane.outstanding(row) for row in rows)
    if left:
        raise RuntimeError(f"{left} requests were not answered")


def first_call(link: Link) -> None:
    """CPU seconds of the first calls of this process: all that is compiled is compiled in one of them."""
    plain, shared = draw(1000, 10.0), draw(1000, 10.0, shared=True)
    everything = engine_with(features()[ALL])
    calls = {
        "one_replica_s": lambda: simulate_replica(plain, LATENCY, ENGINE),
        "with_features_s": lambda: simulate_replica(shared, LATENCY, everything),
        "fleet_s": lambda: serve_fleet(plain, ENGINE),
    }
    link.send({name: fastest(call, runs=1, seconds=0).cpu_s for name, call in calls.items()})


def memory(
    link: Link, requests: int, rate_rps: float, changes: dict[str, Any], shared: bool
) -> None:
    """Peak bytes per request that are allocated while they are simulated.

    The process's own peak would leave out what fits into memory that drawing the requests has freed.
    Results are three numbers per request; the table's other columns count as memory beside them.
    """
    engine = engine_with(changes)
    simulate_replica(draw(1000, rate_rps, shared=shared), LATENCY, engine)
    schedule = draw(requests, rate_rps, shared=shared)
    tracemalloc.start()
    simulate_replica(schedule, LATENCY, engine)
    peak = tracemalloc.get_traced_memory()[1] / len(schedule)
    results = 3 * 8  # first_s, end_s, preemptions
    link.send({"peak": peak, "results": results, "beside_results": peak - results})


def apart(function: Callable[..., object], *arguments: Any, cache: str | None = None) -> Any:
    """What a function sends from a process of its own."""
    environment = {} if cache is None else {"NUMBA_CACHE_DIR": cache}
    with Child(function, *arguments, environment=environment) as child:
        return next(iter(child))


def simpy_peer(schedule: Schedule, ours: dict[str, float]) -> dict[str, float]:
    """The SimPy model under our load; its mean latency over ours says that both do the same."""
    done: list[SimpyReplica] = []

    def work() -> None:
        done[:] = [SimpyReplica(schedule, LATENCY, ENGINE)]
        done[0].run()

    spent = fastest(work, runs=2)
    agrees = float((done[0].end_s - schedule.arrived_at_s).mean()) / ours["e2e_mean_s"]
    if abs(agrees - 1) > 0.01:
        raise RuntimeError(f"the SimPy model's mean latency is {agrees:.3f} of ours: not the same")
    row = timed(schedule, spent)
    return {**row, "e2e_mean_over_ours": agrees, "steps": float(done[0].steps)}


def aisimulate_peer(python: str, rate_rps: float, step_s: float) -> dict[str, Any] | None:
    """AISimulate, and the twin on the same; None where it is not installed."""
    constant = LATENCY.model_copy(
        update={"base_s": 0.0, "per_seq_s": 0.0, "per_token_s": 0.0, "per_kv_token_s": 0.0}
        | {"floor_s": step_s, "step_overhead_s": 0.0}
    )
    script = str(Path(__file__).with_name("aisimulate_replica.py"))
    found: dict[str, Any] = {"step_s": step_s}
    for replicas in (1, REPLICAS):
        schedule = draw(PEER_REQUESTS, rate_rps * replicas)
        asked = {
            **{name: column.tolist() for name, column in schedule.frame().items()},
            "max_model_len": ENGINE.max_model_len,
            "max_num_seqs": ENGINE.max_num_seqs,
            "max_num_batched_tokens": ENGINE.max_num_batched_tokens,
            "kv_blocks": LATENCY.kv_blocks,
            "block_size_tokens": LATENCY.block_size_tokens,
            "step_s": step_s,
            "replicas": replicas,
            "repeats": 3,
        }
        command = [python, script]
        done = subprocess.run(
            command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True
        )
        answer = json.loads(done.stdout.splitlines()[-1])
        if answer is None:
            return None
        if replicas == 1:
            ours = one(schedule, ENGINE, constant)
            answer["e2e_mean_over_ours"] = answer["e2e_mean_s"] / ours["e2e_mean_s"]
            answer["twin_requests_per_s"] = ours["requests_per_s"]
        found["one" if replicas == 1 else "fleet"] = answer
    return found


def measure_compiling() -> dict[str, dict[str, float]]:
    """First calls with nothing compiled, and in a second process with the cache of the first."""
    rows = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("fresh cache", "warm cache"):
            began = time.perf_counter()
            rows[name] = apart(first_call, cache=cache)
            rows[name]["process_s"] = time.perf_counter() - began
            show(f"first call, {name}", rows[name])
    return rows


def measure_counts(
    counts: list[int], rate_rps: float, rate_all_rps: float
) -> dict[str, list[dict[str, float]]]:
    """Rows of one replica for growing numbers of requests."""
    everything = engine_with(features()[ALL])
    rows: dict[str, list[dict[str, float]]] = {"plain": [], ALL: []}
    for count in counts:
        rows["plain"].append(one(draw(count, rate_rps), ENGINE))
        show("one replica, plain", rows["plain"][-1])
        rows[ALL].append(one(draw(count, rate_all_rps, shared=True), everything))
        show(f"one replica, {ALL}", rows[ALL][-1])
    return rows


def flatness(rows: list[dict[str, float]]) -> float:
    """CPU time of a request, most over fewest requests."""
    return rows[-1]["cpu_us_per_request"] / rows[0]["cpu_us_per_request"]


def measure_features() -> dict[str, dict[str, float]]:
    """Rows of one replica with each feature on, at 80 % of what it then can serve."""
    for name in sorted(set(FEATURES) - set(features())):
        print(f"{name}: left out, EngineArgs lacks one of {', '.join(FEATURES[name])}")
    rows = {}
    for name, changes in features().items():
        rate_rps = LOAD * capacity_rps(changes, shared=True)
        row = one(draw(100_000, rate_rps, shared=True), engine_with(changes))
        rows[name] = {**row, "rate_rps": rate_rps}
        show(name, rows[name])
    return rows


def measure_fleet(rate_rps: float, rate_all_rps: float) -> dict[str, dict[str, float]]:
    """Rows of eight replicas."""
    plain = draw(100_000, REPLICAS * rate_rps)
    shared = draw(100_000, REPLICAS * rate_all_rps, shared=True)
    everything = engine_with(features()[ALL])
    rows = {
        "plain": timed(plain, fastest(lambda: serve_fleet(plain, ENGINE))),
        ALL: timed(shared, fastest(lambda: serve_fleet(shared, everything))),
    }
    for name, row in rows.items():
        show(f"{REPLICAS} replicas, {name}", row)
    return rows


def measure_memory(count: int, rate_rps: float, rate_all_rps: float) -> dict[str, Any]:
    """Rows of bytes per request."""
    everything = features()[ALL]
    rows = {}
    rows["plain"] = apart(memory, count, rate_rps, {}, False)
    rows[ALL] = apart(memory, count, rate_all_rps, everything, True)
    for name, row in rows.items():
        show(f"memory, {name}", row)
    return rows


def measure_peers(python: str, rate_rps: float) -> dict[str, Any]:
    """Rows of the peers, with how much faster the twin is."""
    schedule = draw(PEER_REQUESTS, rate_rps)
    ours = one(schedule, ENGINE)
    found: dict[str, Any] = {"simpy": simpy_peer(schedule, ours)}
    found["simpy"]["twin_over_it"] = ours["requests_per_s"] / found["simpy"]["requests_per_s"]
    show("SimPy", found["simpy"])
    # As many sequences at a time as in our load.
    found["aisimulate"] = aisimulate_peer(python, rate_rps, ours["e2e_mean_s"] / OUTPUT)
    if found["aisimulate"] is None:
        print(
            "AISimulate is not installed: see this file's docstring, then name it with --aisimulate"
        )
        return found
    alone = found["aisimulate"]["one"]
    alone["twin_over_it"] = alone["twin_requests_per_s"] / alone["requests_per_s"]
    show("aisimulate", alone)
    show(f"aisimulate, {REPLICAS} replicas", found["aisimulate"]["fleet"])
    return found


def against_targets(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each target with what was found and the ratio found / target."""
    measured = (
        found["features"][ALL]["requests_per_s"],
        min(row["requests_per_s"] for row in found["fleet"].values()),
        max(found["flatness"].values()),
        max(row["beside_results"] for row in found["memory_bytes_per_request"].values()),
        *(sum(row.values()) - row["process_s"] for row in found["compile"].values()),
    )
    rows = {}
    for (name, target), value in zip(TARGETS.items(), measured, strict=True):
        met = value >= target if name in AT_LEAST else value <= target
        rows[name] = {"target": target, "found": value, "ratio": value / target, "met": met}
    return rows


def main() -> None:
    """Print tables, and JSON last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="up to 10,000,000 requests")
    parser.add_argument("--aisimulate", default=sys.executable, help="a Python that has AISimulate")
    asked = parser.parse_args()
    counts = [10_000, 100_000, 1_000_000, *([10_000_000] if asked.full else [])]

    found: dict[str, Any] = {"hardware": Environment.capture().hardware}
    found["compile"] = measure_compiling()
    rate_rps = LOAD * capacity_rps({}, shared=False)
    found["rate_rps"] = rate_rps
    found["features"] = measure_features()
    rate_all_rps = found["features"][ALL]["rate_rps"]
    found["one"] = measure_counts(counts, rate_rps, rate_all_rps)
    found["flatness"] = {name: flatness(rows) for name, rows in found["one"].items()}
    found["fleet"] = measure_fleet(rate_rps, rate_all_rps)
    found["memory_bytes_per_request"] = measure_memory(counts[-1], rate_rps, rate_all_rps)
    found["peers"] = measure_peers(asked.aisimulate, rate_rps)
    found["targets"] = against_targets(found)
    for name, row in found["targets"].items():
        met = "met" if row["met"] else "MISSED"
        print(f"{name:<46}{row['found']:>12,.4g}  target {row['target']:>9,.4g}  {met}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
