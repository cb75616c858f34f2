"""The data plane of a fleet: requests, replicas and routing, moved on from one control event to
the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.plan import EngineArgs
from simulations._route import ARRIVING, WAITING, IntArray, run_until
from simulations._state import REPLICA, limits_of, new_replicas, new_requests, speed_of
from simulations.latency import LatencyModel
from simulations.traffic import Schedule


@dataclass(frozen=True)
class Reading:
    """What one replica would show if it were asked now. Totals count from its start."""

    started_s: float
    running: int
    waiting: int
    kv_usage: float
    """Share of KV blocks in use, 0 to 1."""
    busy_s: float
    """Time inside engine steps: the device was busy with anything at all."""
    active_s: float
    """The same with the gaps between steps: there was something to do."""
    ttft_sum_s: float
    ttft_count: int


class DataPlane:
    """Arrays of all requests of a run and of the replicas that serve them.

    A replica is a row; rows of deleted replicas are used again.
    """

    def __init__(self, schedule: Schedule, latency: LatencyModel, engine: EngineArgs) -> None:
        self.requests = new_requests(schedule)
        self._speed = speed_of(latency)
        self._limits = limits_of(latency, engine)
        self._replicas, self._running = new_replicas(4, self._limits)
        self._free = [3, 2, 1, 0]
        self._alive: list[int] = []
        self._cursor: IntArray = np.zeros(3, dtype=np.int64)
        self._started_s: dict[int, float] = {}
        self.now_s = 0.0

    def add(self) -> int:
        """A new, empty replica: its row."""
        if not self._free:
            grown = len(self._replicas)
            replicas, running = new_replicas(grown, self._limits)
            self._replicas = np.concatenate([self._replicas, replicas])
            self._running = np.concatenate([self._running, running])
            self._free = list(range(2 * grown - 1, grown - 1, -1))
        row = self._free.pop()
        self._alive.append(row)
        self._started_s[row] = self.now_s
        return row

    def remove(self, row: int) -> Reading:
        """Take an idle replica away; its last reading."""
        last = self.read(row)
        if last.running + last.waiting > 0:
            raise RuntimeError(f"replica {row} still holds {last.running + last.waiting} requests")
        self._alive.remove(row)
        self._free.append(row)
        self._replicas[row] = new_replicas(1, self._limits)[0][0]
        return last

    def advance(self, until_s: float, serving: list[int]) -> None:
        """Route what arrives before `until` to the serving rows and run all replicas up to it."""
        if until_s <= self.now_s:
            return
        run_until(
            self.now_s,
            until_s,
            np.array(serving, dtype=np.int64),
            np.array(self._alive, dtype=np.int64),
            self._cursor,
            self.requests,
            self._replicas,
            self._running,
            self._speed,
            self._limits,
        )
        self.now_s = until_s

    def outstanding(self, row: int) -> int:
        """Requests that the replica holds, running or waiting."""
        return int(self._replicas[row]["outstanding"])

    def quiet_until_s(self, row: int) -> float:
        """No request of the replica ends before this."""
        return float(self._replicas[row]["quiet_until_s"])

    @property
    def arrived(self) -> int:
        """Requests that have arrived so far."""
        return int(self._cursor[ARRIVING])

    @property
    def at_gateway(self) -> int:
        """Requests that wait for a replica to become ready."""
        return int(self._cursor[ARRIVING] - self._cursor[WAITING])

    def read(self, row: int) -> Reading:
        """A replica's gauges and counters now; of the step in flight, the part that is over."""
        # All fields at once: one by one they would cost more than the engine.
        state = dict(zip(REPLICA.fields or (), self._replicas[row].item(), strict=True))
        busy_s, active_s = state["busy_s"], state["active_s"]
        if np.isfinite(state["flight_end_s"]):
            elapsed_s = self.now_s - state["flight_start_s"]
            active_s += elapsed_s
            busy_s += min(elapsed_s, state["flight_busy_s"])
        return Reading(
            started_s=self._started_s[row],
            running=state["n_running"],
            waiting=state["n_waiting"],
            kv_usage=1 - state["free_blocks"] / self._limits.usable_blocks,
            busy_s=busy_s,
            active_s=active_s,
            ttft_sum_s=state["ttft_sum_s"],
            ttft_count=state["ttft_count"],
        )
