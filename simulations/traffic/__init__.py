"""Where requests come from, for the twin and for real load alike.

A `Workload` says when requests arrive, how long they are and who sends them; `Workload.schedule()`
draws it. The same seed gives the same schedule.

    arrivals.py     when: processes, published days and weeks, a recorded trace
    renewals.py     how a rate and a burstiness become times; spikes
    rates.py        a user's own rates            replay.py      a recorded trace as arrivals
    lengths.py      how long: fixed, distributions, recorded ones
    formats.py      recorded traffic from its original files     trace.py  what they give
    popularity.py   questions that many ask       segments.py    what prompts are made of
    clients.py      time-outs, retries, patience, priorities     network.py  access, edge sites
    workload.py     all of it together            schedule.py    what is drawn; prefixes, conversations
"""

from __future__ import annotations

from simulations.traffic.arrivals import (
    Arrivals,
    ClosedLoop,
    Constant,
    Day,
    Gamma,
    Poisson,
    Ramp,
    Superposed,
    Week,
)
from simulations.traffic.clients import Clients, Priorities
from simulations.traffic.delays import (
    ConstantDelay,
    Delay,
    EmpiricalDelay,
    ExponentialDelay,
    LogNormalDelay,
    UniformDelay,
)
from simulations.traffic.formats import read_trace
from simulations.traffic.lengths import (
    Empirical,
    Fixed,
    IntArray,
    Lengths,
    LogNormal,
    Recorded,
    Uniform,
)
from simulations.traffic.network import NETWORKS, Edge, Network, Overflow
from simulations.traffic.popularity import Questions
from simulations.traffic.rates import Rates
from simulations.traffic.renewals import FloatArray, Spike
from simulations.traffic.replay import Replay
from simulations.traffic.schedule import Schedule
from simulations.traffic.segments import Segments
from simulations.traffic.trace import Trace
from simulations.traffic.workload import Sessions, SharedPrefix, Workload

__all__ = [
    "NETWORKS",
    "Arrivals",
    "Clients",
    "ClosedLoop",
    "Constant",
    "ConstantDelay",
    "Day",
    "Delay",
    "Edge",
    "Empirical",
    "EmpiricalDelay",
    "ExponentialDelay",
    "Fixed",
    "FloatArray",
    "Gamma",
    "IntArray",
    "Lengths",
    "LogNormal",
    "LogNormalDelay",
    "Network",
    "Overflow",
    "Poisson",
    "Priorities",
    "Questions",
    "Ramp",
    "Rates",
    "Recorded",
    "Replay",
    "Schedule",
    "Segments",
    "Sessions",
    "SharedPrefix",
    "Spike",
    "Superposed",
    "Trace",
    "Uniform",
    "UniformDelay",
    "Week",
    "Workload",
    "read_trace",
]
