"""Where requests come from, for the twin and for real load alike.

A `Workload` says when requests arrive and how long they are; `Workload.schedule()` draws it. The
same seed gives the same schedule.

    arrivals.py     when: processes, a published day, a recorded trace
    lengths.py      how long: fixed, distributions, recorded ones
    traces.py       recorded traffic from its original files
    workload.py     all of it together; shared prefixes and conversations
"""

from __future__ import annotations

from simulations.traffic.arrivals import (
    Arrivals,
    ClosedLoop,
    Constant,
    Day,
    FloatArray,
    Gamma,
    Poisson,
    Ramp,
    Replay,
)
from simulations.traffic.lengths import (
    Empirical,
    Fixed,
    IntArray,
    Lengths,
    LogNormal,
    Recorded,
    Uniform,
)
from simulations.traffic.traces import Trace, read_trace
from simulations.traffic.workload import Schedule, Sessions, SharedPrefix, Workload

__all__ = [
    "Arrivals",
    "ClosedLoop",
    "Constant",
    "Day",
    "Empirical",
    "Fixed",
    "FloatArray",
    "Gamma",
    "IntArray",
    "Lengths",
    "LogNormal",
    "Poisson",
    "Ramp",
    "Recorded",
    "Replay",
    "Schedule",
    "Sessions",
    "SharedPrefix",
    "Trace",
    "Uniform",
    "Workload",
    "read_trace",
]
