"""When a run need not go on: what is asked of it is certain before its end.

*SLO.* A request that was answered over a limit stays over it. Of n latencies the p99 is interpolated
between two of the sorted ones, the lower of them at position floor(0.99 (n - 1)); so once more than
n - 1 - floor(0.99 (n - 1)) are over a limit, it is over the limit whatever the others come to. The
shares of lost requests only grow. Both bounds are lower for fewer requests, so that an upper limit of n
will do: all that the schedule sends after the warm-up.

*Cost.* GPU time that was held is paid, and an autoscaler never goes below min_replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from serving.plan import Slo
from simulations.engine import OUTCOMES
from simulations.fleet import Fleet
from simulations.promise import limits_of, lost_shares
from simulations.traffic import Schedule, Workload

LOOKS = 96
"""In a run."""
DEARER = "costs more"
BROKEN = "breaks the SLO"
_SHARE = 0.99
_FIRST_OVER = OUTCOMES.index("answered")
"""Statuses from here on are for good."""
_ANSWERED = [i for i, name in enumerate(OUTCOMES) if name in ("answered", "cached")]
_LOST = ("failed", "rejected", "aborted")


@dataclass(frozen=True)
class Stop:
    """What ends a run, once it is certain.

    Attributes:
        times_over: a limit of the SLO is broken, so many times over.
        gpu_hours: it costs more than so many in 24 hours.
    """

    times_over: float = 1.0
    gpu_hours: float = math.inf


class Looks:
    """Counts what is certain, from look to look.

    Args:    stop: what ends the run.
             schedule: its traffic, of which requests before `workload.warmup_s` do not count.
    """

    def __init__(self, stop: Stop, schedule: Schedule, workload: Workload, slo: Slo) -> None:
        self._stop = stop
        self._network_s = schedule.network_s
        self._warmup_s = workload.warmup_s
        self._limits = {name: stop.times_over * limit for name, limit in limits_of(slo).items()}
        self._latencies = {name: self._limits[name] for name in slo.limits()}
        self._over = dict.fromkeys(self._latencies, 0)
        self._answered = 0
        self._lost = dict.fromkeys(_LOST, 0)
        # When later turns are sent follows from what happens.
        turns = schedule.after is not None
        n = len(schedule)
        self._counted = n if turns else int((schedule.arrived_at_s >= self._warmup_s).sum())
        self._looked = n if turns else 0
        self._open = np.arange(self._looked)

    def why(self, fleet: Fleet) -> str:
        """Why the run may end now; empty where it must go on."""
        self._count(fleet)
        if self._answered and fleet.least_gpu_hours_a_day() > self._stop.gpu_hours:
            return DEARER
        may_be_over = self._counted - 1 - math.floor(_SHARE * (self._counted - 1))
        lost = lost_shares({name: count / self._counted for name, count in self._lost.items()})
        broken = any(count > may_be_over for count in self._over.values()) or any(
            share > self._limits[name] for name, share in lost.items()
        )
        return BROKEN if broken else ""

    def _count(self, fleet: Fleet) -> None:
        """Add what has ended since the last look."""
        new = np.arange(self._looked, max(self._looked, fleet.data.arrived))
        self._looked += len(new)
        known = np.concatenate([self._open, new])
        requests = fleet.data.requests
        status = requests["status"][known]
        self._open = known[status < _FIRST_OVER]
        asked_s = fleet.data.asked_s
        over = known[status >= _FIRST_OVER]
        over = over[asked_s[over] >= self._warmup_s]
        status = requests["status"][over]
        for name in _LOST:
            self._lost[name] += int((status == OUTCOMES.index(name)).sum())
        answered = over[np.isin(status, _ANSWERED)]
        self._answered += len(answered)
        found = {name: requests[name][answered] for name in ("first_s", "end_s", "output")}
        away_s = 0.0 if self._network_s is None else self._network_s[answered]
        e2e_s = found["end_s"] - asked_s[answered]
        ttft_s = found["first_s"] - asked_s[answered]
        gaps = np.where(found["output"] > 1, found["output"] - 1, np.nan)
        latencies = {
            "ttft_p99_s": ttft_s + away_s,
            "tpot_p99_s": (e2e_s - ttft_s) / gaps,
            "e2e_p99_s": e2e_s + away_s,
        }
        for name, limit in self._latencies.items():
            self._over[name] += int((latencies[name] > limit).sum())
