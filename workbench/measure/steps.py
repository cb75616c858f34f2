"""From vLLM's step records (steplog.py) to `Measurement.steps`.

**Time.** `elapsed_ms` in a record is the wait for the result and not the work, where the work is done
on the way there: with async scheduling, and with the one-process executor. What is always true is
the engine's own clock between two tokens of one sequence. A busy spell is therefore a chain of such
intervals, and its place on the common clock is that of the record that came through with the least
delay. The first step of a spell begins when its requests were scheduled, which vLLM says when they
finish.

**KV cache.** Tokens computed so far less those of finished requests: exact, where the cache's usage
counts whole blocks. After a preemption, until the engine idles, the usage is all there is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from workbench.measure.engine import ReplicaInfo, Step, steps_frame

Record = dict[str, Any]


class CacheLedger:
    """Counts the tokens in the KV cache from the records of the steps, in order."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity_tokens = capacity_tokens
        self._held = 0
        self._certain = True

    def tokens(self, record: Record) -> int:
        """Tokens in the cache when this step ran, its own included."""
        self._held += record["prefill_tokens"] + record["decode_tokens"] + record["cached_tokens"]
        self._certain = self._certain and not record["preempted"]
        used = round(record["kv_usage"] * self._capacity_tokens)
        held = self._held if self._certain else used
        self._held -= sum(tokens for tokens, _, _ in record["finished"])
        if not _busy(record):
            self._held, self._certain = 0, True
        return held


class StepLog:
    """A step log that a server is still writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def read(self) -> list[Record]:
        """What was written since the last call; a line that is half written waits for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as log:
            log.seek(self._at)
            new = log.read()
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [json.loads(line) for line in lines]


def server_steps(records: Sequence[Record], replica: ReplicaInfo, origin_s: float) -> pd.DataFrame:
    """Records of a server as `Measurement.steps`.

    Args:    origin_s: the start of the run on the system's monotonic clock.
    """
    if not records:
        return steps_frame([])
    ends_s, heads = _timeline(records)
    begins_s = _begins(records, ends_s, heads)
    ledger = CacheLedger(replica.kv_capacity_tokens)
    steps = []
    for i, record in enumerate(records):
        kv_tokens = ledger.tokens(record)
        if np.isnan(begins_s[i]):
            continue  # its requests never finished, so nobody knows when it began
        steps.append(
            Step(
                t_s=ends_s[i] - origin_s,
                step_s=ends_s[i] - begins_s[i],
                gap_s=np.nan if heads[i] else 0.0,
                prefill_requests=record["prefill_requests"],
                prefill_tokens=record["prefill_tokens"],
                decode_seqs=record["decode_seqs"],
                kv_tokens=kv_tokens,
                running=record["running"],
                waiting=record["waiting"],
                preempted=record["preempted"],
            )
        )
    return steps_frame(steps)


def cached_tokens(records: Sequence[Record]) -> int:
    """Prompt tokens that came from the prefix cache."""
    return sum(record["cached_tokens"] for record in records)


def _busy(record: Record) -> bool:
    return bool(record["running"] + record["waiting"])


def _timeline(
    records: Sequence[Record],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """End of each step on the common clock, and whether it is the first of a busy spell."""
    n = len(records)
    at_s = np.array([record["at"] for record in records])
    heads = np.array([i == 0 or not _busy(records[i - 1]) for i in range(n)])
    interval_s = np.zeros(n)
    for i in np.flatnonzero(~heads):
        period_s = records[i]["period_s"]
        interval_s[i] = at_s[i] - at_s[i - 1] if period_s is None else period_s
    ends_s = np.cumsum(interval_s)
    spells = np.cumsum(heads) - 1
    delay_s = pd.Series(at_s - ends_s).groupby(spells).transform("min").to_numpy()
    return ends_s + delay_s, heads


def _begins(
    records: Sequence[Record],
    ends_s: npt.NDArray[np.float64],
    heads: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """Start of each step; NaN for the first of a spell in which no request finished."""
    begins_s = np.concatenate([[np.nan], ends_s[:-1]])
    begins_s[heads] = np.nan
    head = 0
    for i, record in enumerate(records):
        head = i if heads[i] else head
        for _, prefill_s, decode_s in record["finished"]:
            scheduled_s = ends_s[i] - decode_s - prefill_s
            if scheduled_s < ends_s[head]:
                begins_s[head] = np.fmin(begins_s[head], scheduled_s)
    floor_s = np.concatenate([[-np.inf], ends_s[:-1]])
    return np.where(np.isnan(begins_s), np.nan, np.maximum(begins_s, floor_s))
