"""A day of an autoscaled fleet: how long does it take to simulate, and how much memory?

    python -m benchmarks.fleet_day

The load: a published day (servegen-m-large) with 50 requests a second in the mean, prompts of 512 and
outputs of 256 tokens, an 8B model on one large GPU per replica, an autoscaler that may use 50 of them
and asks for three running requests each, on one core. Then the same day with a tenth of the requests:
what each costs, and what the control loops cost besides, which do not grow with them.

Each day is simulated in a process of its own, after one of ten seconds that compiles what has to be
compiled. The machine may be busy: CPU time is what is judged. The last line is JSON.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.twin import apart
from benchmarks.twin_load import ENGINE, LATENCY, OUTPUT, PROMPT
from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import Plan, Slo, Variant
from simulations.profiles import PROFILES
from simulations.simulate import simulate
from simulations.traffic import Day, Fixed, Workload
from workbench.apart import Link
from workbench.measure.environment import Environment

MEAN_RPS, MOST_REPLICAS, RUNNING_EACH = 50.0, 50, 3
PROFILE = "servegen-m-large"
TARGETS = {"CPU seconds": 60.0, "peak memory, GiB": 4.0}


def a_day(mean_rps: float, duration_s: float = 86_400.0) -> Workload:
    """The first of the profile's days at a mean rate."""
    (first, *_) = PROFILES[PROFILE].days
    peak = max(first) / (sum(first) / len(first))
    return Workload(
        arrivals=Day(profile=PROFILE, peak_rps=mean_rps * peak),
        prompt_tokens=Fixed(tokens=PROMPT),
        output_tokens=Fixed(tokens=OUTPUT),
        duration_s=duration_s,
    )


def fleet() -> Plan:
    """The plan of both days."""
    return Plan(
        name="benchmark",
        variant=Variant(name="8b", model="somewhere"),
        engine=ENGINE,
        slo=Slo(),
        hpa=HpaSpec(
            max_replicas=MOST_REPLICAS, metrics=(pods_metric(REQUESTS_RUNNING, RUNNING_EACH),)
        ),
    )


def simulated(link: Link, mean_rps: float) -> None:
    """Send what one day took: drawing the traffic is in it, compiling is not."""
    simulate(fleet(), a_day(mean_rps, 10.0), LATENCY, seeds=(0,))
    wall, cpu = time.perf_counter(), time.process_time()
    found = simulate(fleet(), a_day(mean_rps), LATENCY, seeds=(0,))
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    requests = len(a_day(mean_rps).schedule())
    link.send(
        {
            "requests": requests,
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "cpu_us_per_request": cpu_s / requests * 1e6,
            "peak_gib": _peak_gib(),
            **{
                name: found.metrics[name].value
                for name in ("replicas_mean", "replicas_max", "scale_events", "ttft_p99_s")
            },
        }
    )


def _peak_gib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Print rows, and JSON last."""
    found: dict[str, Any] = {"hardware": Environment.capture().hardware}
    for name, mean_rps in (("day", MEAN_RPS), ("quiet_day", MEAN_RPS / 10)):
        found[name] = apart(simulated, mean_rps)
        print(name, ", ".join(f"{key} {value:,.4g}" for key, value in found[name].items()))
    flat = found["quiet_day"]["cpu_us_per_request"] / found["day"]["cpu_us_per_request"]
    found["quiet_over_busy"] = flat
    print(f"CPU time of a request on the quiet day over that on the busy one: {flat:.2f}")
    for (name, target), value in zip(
        TARGETS.items(), (found["day"]["cpu_s"], found["day"]["peak_gib"]), strict=True
    ):
        met = "met" if value < target else "MISSED"
        print(f"{name:<24}{value:>10,.4g}  target {target:>6,.4g}  {met}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
