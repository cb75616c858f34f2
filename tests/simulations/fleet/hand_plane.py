"""A data plane by hand arithmetic: replicas with slots, in each of which a request takes its time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from simulations.engine import Reading
from simulations.traffic import Schedule

EDGES_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)


def spread(number: int, salt: int) -> float:
    """A hash from 0 to 1, the same every time."""
    return (number * 2654435761 + salt * 40503) % 2**32 / 2**32


@dataclass
class Replica:
    started_s: float
    slowdown: float
    error_share: float
    version: int
    running: dict[int, float] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    busy_s: float = 0.0
    finished: int = 0
    failed: int = 0
    tpot_sum_s: float = 0.0
    tpot: Any = field(default_factory=lambda: np.zeros(len(EDGES_S) + 1, dtype=np.int64))


class HandPlane:
    """A request takes `per_token_s` for each token of its answer, if one of `slots` is free.

    KV usage is the share of slots in use. Every request goes to the serving replica with the fewest,
    the first of equals.
    """

    def __init__(self, schedule: Schedule, *, slots: int = 4, per_token_s: float = 0.01) -> None:
        n = len(schedule)
        self._schedule = schedule
        self._slots = slots
        self._per_token_s = per_token_s
        self._rows: dict[int, Replica] = {}
        self._gateway: deque[int] = deque()
        self._ends: list[tuple[float, int, int]] = []
        self._made = 0
        self.now_s = 0.0
        self.arrived = 0
        self.outcome = np.full(n, "unfinished", dtype=object)
        self.end_s = np.full(n, np.nan)
        self.version = np.full(n, -1)
        self.replica = np.full(n, -1)
        self.taken = np.zeros(n, dtype=np.int64)
        """By how many replicas."""

    @property
    def requests(self) -> pd.DataFrame:
        e2e_s = self.end_s - self._schedule.arrived_at_s
        return pd.DataFrame(
            {
                "arrived_at_s": self._schedule.arrived_at_s,
                "end_s": self.end_s,
                "ttft_s": e2e_s,
                "tpot_s": e2e_s / self._schedule.output_tokens,
                "e2e_s": e2e_s,
                "outcome": self.outcome,
                "version": self.version,
                "replica": self.replica,
            }
        )

    @property
    def asked_s(self) -> Any:
        return self._schedule.arrived_at_s

    @property
    def at_gateway(self) -> int:
        return len(self._gateway)

    def add(self, *, slowdown: float = 1.0, error_share: float = 0.0, version: int = 0) -> int:
        self._rows[self._made] = Replica(self.now_s, slowdown, error_share, version)
        self._made += 1
        return self._made - 1

    def remove(self, row: int) -> Reading:
        assert self.outstanding(row) == 0
        last = self.read(row)
        del self._rows[row]
        return last

    def fail(self, row: int) -> Reading:
        last = self.read(row)
        gone = self._rows.pop(row)
        for i in (*gone.running, *gone.waiting):
            self._over(i, self.now_s, "failed")
        return last

    def outstanding(self, row: int) -> int:
        return len(self._rows[row].running) + len(self._rows[row].waiting)

    def quiet_until_s(self, row: int) -> float:
        return min(self._rows[row].running.values(), default=np.inf)

    def read(self, row: int) -> Reading:
        r = self._rows[row]
        return Reading(
            started_s=r.started_s,
            running=len(r.running),
            waiting=len(r.waiting),
            kv_usage=len(r.running) / self._slots,
            busy_s=r.busy_s,
            active_s=r.busy_s,
            ttft_sum_s=0.0,
            ttft_count=r.finished,
            finished=r.finished,
            failed=r.failed,
            tpot_sum_s=r.tpot_sum_s,
            histograms={"tpot": r.tpot.copy()},
        )

    def gauges(self, rows: Sequence[int]) -> Any:
        found = [self.read(row) for row in rows]
        return np.array([(r.running, r.waiting, r.kv_usage) for r in found]).reshape(-1, 3)

    def totals(self, rows: Sequence[int], names: Sequence[str]) -> Any:
        found = [[getattr(self.read(row), name) for name in names] for row in rows]
        return np.array(found, dtype=np.float64).reshape(-1, len(names))

    def histograms(self, rows: Sequence[int]) -> dict[str, Any]:
        return {"tpot": np.array([self._rows[row].tpot for row in rows])}

    def busy(self, rows: Sequence[int]) -> list[tuple[float, float]]:
        return [(self._rows[row].busy_s, self._rows[row].started_s) for row in rows]

    def advance(
        self,
        until_s: float,
        serving: Sequence[int],
        canary: Sequence[int] = (),
        canary_share: float = 0.0,
    ) -> None:
        assert until_s >= self.now_s
        assert all(row in self._rows for row in (*serving, *canary))
        times = self._schedule.arrived_at_s
        while serving and self._gateway:
            self._route(self._gateway.popleft(), self.now_s, serving, canary, canary_share)
        while True:
            arrives_s = times[self.arrived] if self.arrived < len(times) else np.inf
            ends_s = self._ends[0][0] if self._ends else np.inf
            if min(arrives_s, ends_s) >= until_s:
                break
            if ends_s <= arrives_s:
                self._end(*heapq.heappop(self._ends))
                continue
            i = self.arrived
            self.arrived += 1
            if serving:
                self._route(i, arrives_s, serving, canary, canary_share)
            else:
                self._gateway.append(i)
        self.now_s = until_s

    def _route(
        self, i: int, at_s: float, serving: Sequence[int], canary: Sequence[int], share: float
    ) -> None:
        rows = canary if canary and spread(i, 1) < share else serving
        row = min(rows, key=self.outstanding)
        r = self._rows[row]
        self.version[i], self.replica[i] = r.version, row
        self.taken[i] += 1
        if spread(i, 2) < r.error_share:
            r.failed += 1
            self._over(i, at_s, "failed")
        elif len(r.running) < self._slots:
            self._begin(i, at_s, row)
        else:
            r.waiting.append(i)

    def _begin(self, i: int, at_s: float, row: int) -> None:
        r = self._rows[row]
        takes_s = self._schedule.output_tokens[i] * self._per_token_s * r.slowdown
        r.running[i] = at_s + takes_s
        heapq.heappush(self._ends, (at_s + takes_s, i, row))

    def _end(self, at_s: float, i: int, row: int) -> None:
        r = self._rows.get(row)
        if r is None or i not in r.running:  # it died with its replica
            return
        del r.running[i]
        tpot_s = self._per_token_s * r.slowdown
        r.finished += 1
        r.tpot_sum_s += tpot_s
        r.tpot[np.searchsorted(EDGES_S, tpot_s)] += 1
        self._over(i, at_s, "answered")
        if r.waiting:
            self._begin(r.waiting.popleft(), at_s, row)

    def _over(self, i: int, at_s: float, how: str) -> None:
        assert self.outcome[i] == "unfinished", "a request ends once"
        self.outcome[i], self.end_s[i] = how, at_s
