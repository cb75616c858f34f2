"""One vLLM replica, step for step: its scheduler as vLLM has it, on a fitted clock.

`reference` says in plain Python what happens; the compiled core does the same, fast.
"""

from simulations.engine.dataplane import DataPlane, Reading
from simulations.engine.histograms import BUCKETS_S
from simulations.engine.options import SchedulerOptions
from simulations.engine.replica import (
    OUTCOMES,
    check_lengths,
    estimate,
    percentiles,
    request_frame,
    simulate_replica,
    simulate_workload,
    trace_replica,
)

__all__ = [
    "BUCKETS_S",
    "OUTCOMES",
    "DataPlane",
    "Reading",
    "SchedulerOptions",
    "check_lengths",
    "estimate",
    "percentiles",
    "request_frame",
    "simulate_replica",
    "simulate_workload",
    "trace_replica",
]
