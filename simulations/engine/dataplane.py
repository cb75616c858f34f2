"""The data plane of a fleet: requests, replicas and routing, moved on from one control event to
the next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.gateway.spec import GatewaySpec
from simulations.engine._compiler import DIGEST
from simulations.engine._route import (
    ARRIVED,
    AT_GATEWAY,
    HEAD,
    HITS,
    REFUSED,
    TAIL,
    crash,
    run_until,
)
from simulations.engine._setup import emptied, grown, limits_of, new_state, speed_of
from simulations.engine._state import REPLICA, IntArray, Records
from simulations.engine.histograms import BUCKETS_S
from simulations.engine.options import SchedulerOptions
from simulations.latency import LatencyModel
from simulations.traffic import Schedule

_FIELDS = REPLICA.names or ()
_COLUMNS = ("sent_s", "prompt", "output", "attempts", "status", "replica", "version")
"""Of a request, for whoever looks from outside."""
_BUCKETS = {name: len(edges) + 1 for name, edges in BUCKETS_S.items()}


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
    tpot_sum_s: float = 0.0
    e2e_sum_s: float = 0.0
    queue_sum_s: float = 0.0
    prompt_tokens: int = 0
    """Of requests that have their first token."""
    generation_tokens: int = 0
    finished: int = 0
    """Answered, as are all that count in the sums but that of TTFT."""
    aborted: int = 0
    """Given up by their clients."""
    rejected: int = 0
    failed: int = 0
    histograms: dict[str, IntArray] = field(default_factory=dict)
    """Observations by bucket, the last above all edges: see BUCKETS_S. {} where they are off."""


@cache
def _announce() -> None:
    """One line where somebody looks, before the compiler makes them wait: once a machine."""
    core: Any = run_until
    if core.signatures or not sys.stderr.isatty():
        return
    if any(Path(core.stats.cache_path).glob(f"*{DIGEST}*.nbi")):
        return
    print("Compiling the engine twin, once on this machine (10 to 30 s) ...", file=sys.stderr)


class DataPlane:
    """Arrays of all requests of a run and of the replicas that serve them.

    A replica is a row; rows of deleted replicas are used again.
    """

    def __init__(
        self,
        schedule: Schedule,
        latency: LatencyModel,
        options: SchedulerOptions,
        *,
        gateway: GatewaySpec | None = None,
        histograms: bool = False,
        concurrency: int | None = None,
        noise: bool = True,
        seed: int = 0,
        step_times_s: Sequence[float] = (),
        traced: tuple[int, int] = (0, 0),
    ) -> None:
        """
        Args:    gateway: None is `GatewaySpec()`.
                 histograms: count latencies by bucket, as vLLM does.
                 concurrency: closed loop: so many users share the requests, each sending the next
                     one when the last is over; arrival times are then outcomes.
                 noise: draw each step's share of the measured scatter.
                 step_times_s: take these times for the steps of one replica, in order.
                 traced: how many steps, and requests in steps, to keep a record of.
        """
        self._limits = limits_of(options, latency, schedule)
        self._speed = speed_of(latency, options.max_seqs, noise=noise, step_times_s=step_times_s)
        self._seed = seed
        self._state = new_state(
            schedule,
            self._limits,
            1,
            gateway=gateway,
            histograms=histograms,
            seed=seed,
            concurrency=concurrency,
            traced=traced,
        )
        self._n_open = len(schedule) if concurrency is None else min(concurrency, len(schedule))
        turns = schedule.after if concurrency is None and schedule.conversations else None
        self._after: IntArray = np.zeros(0, dtype=np.int64) if turns is None else turns
        self._free = [0]
        self._alive: list[int] = []
        self._cursor: IntArray = np.zeros(8, dtype=np.int64)
        self._cursor[[HEAD, TAIL]] = -1
        self._started = 0
        self._started_s: dict[int, float] = {}
        self.now_s = 0.0

    @property
    def requests(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays (n,) by name, which go on changing: see `_state.REQUEST` and `_state.Outcomes`."""
        records = self._state.requests
        return {**{name: records[name] for name in _COLUMNS}, **self._state.outcomes._asdict()}

    @property
    def traced(self) -> tuple[int, int]:
        """How many steps and pairs there were, those that found no room too."""
        return int(self._state.traced[0]), int(self._state.traced[1])

    @property
    def steps(self) -> Records:
        """A record of every step so far, as far as they are traced, see `_state.STEP`."""
        return self._state.steps[: self._state.traced[0]]

    @property
    def pairs(self) -> Records:
        """int array (n, 3): step, request and its tokens, as far as they are traced."""
        return self._state.pairs[: self._state.traced[1]]

    def add(self, *, slowdown: float = 1.0, error_share: float = 0.0, version: int = 0) -> int:
        """A new, empty replica: its row.

        Args:    slowdown: factor on the time of its steps.
                 error_share: of requests that it fails as soon as it gets them, 0 to 1.
                 version: noted with each request that it gets.
        """
        if not self._free:
            count = len(self._state.replicas)
            self._state = grown(self._state, self._limits)
            self._free = list(range(2 * count - 1, count - 1, -1))
        row = self._free.pop()
        replica = self._state.replicas[row]
        replica["seed"] = np.random.SeedSequence([self._seed, self._started]).generate_state(
            1, np.uint64
        )[0]
        replica["clock_s"] = self.now_s
        replica["slowdown"] = slowdown
        replica["error_share"] = error_share
        replica["version"] = version
        replica["number"] = self._started
        self._started += 1
        self._alive.append(row)
        self._started_s[row] = self.now_s
        return row

    def remove(self, row: int) -> Reading:
        """Take an idle replica away; its last reading."""
        last = self.read(row)
        if last.running + last.waiting > 0:
            raise RuntimeError(f"replica {row} still holds {last.running + last.waiting} requests")
        self._forget(row)
        return last

    def fail(self, row: int) -> Reading:
        """The replica dies, and all that it holds fails; its reading just before."""
        last = self.read(row)
        crash(row, self.now_s, self._state, self._limits)
        self._forget(row)
        return last

    def _forget(self, row: int) -> None:
        self._alive.remove(row)
        self._free.append(row)
        emptied(self._state, self._limits, row)

    def advance(
        self,
        until_s: float,
        serving: Sequence[int],
        canary: Sequence[int] = (),
        canary_share: float = 0.0,
    ) -> None:
        """Route what arrives before `until` to the serving rows and run all replicas up to it.

        Args:    canary: rows that take this share of the conversations instead.
        """
        if until_s <= self.now_s:
            return
        _announce()
        run_until(
            self.now_s,
            until_s,
            self._n_open,
            np.array(serving, dtype=np.int64),
            np.array(canary, dtype=np.int64),
            canary_share,
            np.array(self._alive, dtype=np.int64),
            self._cursor,
            self._after,
            self._state,
            self._speed,
            self._limits,
        )
        self.now_s = until_s

    def outstanding(self, row: int) -> int:
        """Requests that the replica holds, running or waiting."""
        return int(self._state.replicas[row]["outstanding"])

    def quiet_until_s(self, row: int) -> float:
        """No request of the replica ends before this."""
        return float(self._state.replicas[row]["quiet_until_s"])

    @property
    def arrived(self) -> int:
        """Requests that have arrived so far."""
        return int(self._cursor[ARRIVED])

    @property
    def at_gateway(self) -> int:
        """Requests that wait for a replica to become ready."""
        return int(self._cursor[AT_GATEWAY])

    @property
    def refused(self) -> int:
        """Requests that the gateway has answered with 503 so far."""
        return int(self._cursor[REFUSED])

    @property
    def cache_hits(self) -> int:
        """Requests that the gateway has answered from its result cache so far."""
        return int(self._cursor[HITS])

    @property
    def asked_s(self) -> npt.NDArray[np.float64]:
        """float array (n,): when each request was sent first."""
        sent_s: npt.NDArray[np.float64] = self._state.requests["sent_s"]
        first_s = self._state.gate.asked_s
        return np.where(np.isnan(first_s), sent_s, first_s) if len(first_s) else sent_s

    def read(self, row: int) -> Reading:
        """A replica's gauges and counters now; of the step in flight, the part that is over."""
        # All fields at once: one by one they would cost more than the engine.
        state = dict(zip(_FIELDS, self._state.replicas[row].item(), strict=True))
        busy_s, active_s = self._in_flight(row, state["updated"], state["step"])
        counts = self._state.counts[row].copy()
        return Reading(
            started_s=self._started_s[row],
            running=state["n_running"],
            waiting=state["n_waiting"] + state["n_inbox"],
            kv_usage=1 - state["free_blocks"] / self._limits.usable_blocks,
            busy_s=state["busy_s"] + busy_s,
            active_s=state["active_s"] + active_s,
            ttft_sum_s=state["ttft_sum_s"],
            ttft_count=state["ttft_count"],
            tpot_sum_s=state["tpot_sum_s"],
            e2e_sum_s=state["e2e_sum_s"],
            queue_sum_s=state["queue_sum_s"],
            prompt_tokens=state["prompt_tokens"],
            generation_tokens=state["generation_tokens"],
            finished=state["finished"],
            aborted=state["aborted"],
            rejected=state["rejected"],
            failed=state["failed"],
            histograms={
                name: counted[:size]
                for (name, size), counted in zip(_BUCKETS.items(), counts, strict=False)
            },
        )

    def gauges(self, rows: Sequence[int]) -> npt.NDArray[np.float64]:
        """float array (rows, 3): running, waiting and KV usage of each; a cheap part of `read`."""
        state = self._state.replicas.take(rows)
        found = np.empty((len(state), 3))
        found[:, 0] = state["n_running"]
        found[:, 1] = state["n_waiting"] + state["n_inbox"]
        found[:, 2] = 1 - state["free_blocks"] / self._limits.usable_blocks
        return found

    def totals(self, rows: Sequence[int], names: Sequence[str]) -> npt.NDArray[np.float64]:
        """float array (rows, names): counters of each by their names in `Reading`."""
        state = self._state.replicas.take(rows)
        found = np.empty((len(state), len(names)))
        for i, name in enumerate(names):
            found[:, i] = state[name]
        return found

    def histograms(self, rows: Sequence[int]) -> dict[str, IntArray]:
        """{name: int array (rows, buckets)}: observations of each as in `Reading`."""
        counts = self._state.counts.take(rows, axis=0).swapaxes(0, 1)
        return {
            name: counted[:, :size]
            for (name, size), counted in zip(_BUCKETS.items(), counts, strict=False)
        }

    def busy(self, rows: Sequence[int]) -> list[tuple[float, float]]:
        """Seconds that each has been busy until now, and when it started: a cheap part of `read`."""
        state, flights = self._state.replicas.take(rows), self._state.flights.take(rows, axis=0)
        each = np.arange(len(state))
        in_flight_s = np.zeros(len(state))
        for ahead in (1, 2):
            step = state["updated"] + ahead
            elapsed_s = np.maximum(0.0, self.now_s - flights["start_s"][each, step % 2])
            flight_s = np.minimum(elapsed_s, flights["busy_s"][each, step % 2])
            in_flight_s += np.where(step <= state["step"], flight_s, 0.0)
        busy_s = (state["busy_s"] + in_flight_s).tolist()
        return list(zip(busy_s, (self._started_s[row] for row in rows), strict=True))

    def _in_flight(self, row: int, updated: int, decided: int) -> tuple[float, float]:
        """Busy and active seconds of the steps under way, until now."""
        busy_s = active_s = 0.0
        for step in range(updated + 1, decided + 1):
            start_s, _, flight_s, *_ = self._state.flights[row, step % 2].item()
            elapsed_s = max(0.0, self.now_s - start_s)
            active_s += elapsed_s
            busy_s += min(elapsed_s, flight_s)
        return busy_s, active_s
