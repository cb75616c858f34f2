"""A search for the cheapest autoscaler on a whole day: how long do 200 trials take on two cores?

    python -m benchmarks.tune_day [TRIALS]

The load: a published day (servegen-m-large) of 400,000 requests, prompts of 512 and outputs of 256
tokens, an 8B model on L4 cards of which the peak needs seven, with the model of its steps assumed from
the data sheet. Trials see two days (racing ends the clearly bad after one, or within it) and run in
two processes, eight asked for at once: of four the last often runs alone. The final choice, the report
on unseen days, the winner's neighbours on one of these and the baselines are part of the work.

What is judged is the wall clock on two free cores; where the machine is busy, CPU time over two says
what it would be at best. Fewer trials are scaled up by the part of the time that the search took. The
last line is JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serving.plan import EngineArgs, Plan, Slo, Variant
from simulations.profiles import PROFILES
from simulations.traffic import Day, Fixed, Workload
from workbench.measure.environment import Environment
from workbench.studies import from_card
from workbench.tune import Candidate, tune

TRIALS, CORES, REQUESTS, TARGET_S = 200, 2, 400_000, 600.0
AT_ONCE = 8
PROFILE, DEVICE = "servegen-m-large", "l4"
DAY_S = 86_400.0
ENGINE = EngineArgs(max_model_len=2048, max_num_seqs=64, max_num_batched_tokens=2048)
SLO = Slo(ttft_p99_s=2.0, tpot_p99_s=0.12)
VARIANT = Variant(name="bf16", model="meta-llama/Llama-3.1-8B-Instruct")


def a_day() -> Workload:
    """The first of the profile's days."""
    (first, *_) = PROFILES[PROFILE].days
    peak = max(first) / (sum(first) / len(first))
    return Workload(
        arrivals=Day(profile=PROFILE, peak_rps=peak * REQUESTS / DAY_S),
        prompt_tokens=Fixed(tokens=512),
        output_tokens=Fixed(tokens=256),
        duration_s=DAY_S,
        warmup_s=3_600,
    )


def cpu_s() -> float:
    """Of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def searched(trials: int) -> dict[str, Any]:
    """A search, and when each of its parts began."""
    began = time.perf_counter()
    parts: dict[str, float] = {}

    def note(doing: str, share: float) -> None:
        kind = "search" if " of " in doing and "trials" in doing else doing
        parts.setdefault(kind, time.perf_counter() - began)
        print(f"{time.perf_counter() - began:7.0f} s  {doing}", flush=True)

    plan = Plan(name="sized", variant=VARIANT, engine=ENGINE, slo=SLO, replicas=1)
    with tempfile.TemporaryDirectory() as folder:
        found = tune(
            [Candidate(variant=VARIANT, latency=from_card(plan, DEVICE))],
            a_day(),
            SLO,
            engine=ENGINE,
            trials=trials,
            storage=Path(folder) / "study.db",
            n_jobs=CORES,
            at_once=AT_ONCE,
            neighbour_seeds=1,
            force=True,
            on_progress=note,
        )
    wall_s = time.perf_counter() - began
    after = sorted(at for at in parts.values() if at > parts["search"])
    hours = found.table().set_index("name")["gpu_hours"]
    return {
        "trials": trials,
        "days_simulated": int(found.trials["seeds_run"].sum()),
        "requests_a_day": len(a_day().schedule()),
        "wall_s": wall_s,
        "search_wall_s": after[0] - parts["search"],
        "cpu_s": cpu_s(),
        "keeps_slo": found.winner_result.keeps_slo,
        "gpu_hours": {str(name): float(value) for name, value in hours.items()},
    }


def main() -> None:
    """Print progress and rows, and JSON last."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    found = searched(trials)
    search_share = found["search_wall_s"] / found["wall_s"]
    scale = 1 + search_share * (TRIALS / trials - 1)
    found |= {
        "hardware": Environment.capture().hardware,
        "wall_s_of_200": scale * found["wall_s"],
        "cpu_s_of_200_over_cores": scale * found["cpu_s"] / CORES,
    }
    for name in ("wall_s_of_200", "cpu_s_of_200_over_cores"):
        met = "met" if found[name] < TARGET_S else "MISSED"
        print(f"{name:<28}{found[name]:>10,.4g}  target {TARGET_S:>6,.4g}  {met}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
