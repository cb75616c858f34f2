"""Steps of a server are recovered exactly from records that came through late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from workbench.measure.engine import ReplicaInfo
from workbench.measure.steps import CacheLedger, Record, cached_tokens, server_steps

REPLICA = ReplicaInfo(engine_version="x", kv_blocks=64, block_size_tokens=16, start_s=1.0)
ORIGIN_S = 1000.0


class Truth:
    """A tiny engine that writes down what vLLM would log, and when each step really began."""

    def __init__(self) -> None:
        self.now_s = ORIGIN_S
        self.records: list[Record] = []
        self.begins_s: list[float] = []
        self.kv_tokens: list[int] = []
        self._alive: dict[int, dict[str, Any]] = {}
        self._next = 0

    def step(self, arrivals: list[tuple[int, int]], lasts_s: float) -> None:
        """One step that prefills every arrival (prompt tokens, output tokens) and decodes the rest."""
        began_s = self.now_s
        self.now_s += lasts_s
        decoding = list(self._alive.values())
        last_tokens = [s["last_s"] for s in decoding]
        for prompt, output in arrivals:
            self._next += 1
            self._alive[self._next] = {
                "held": prompt,
                "left": output,
                "began_s": began_s,
                "first_s": self.now_s,
            }
        for sequence in decoding:
            sequence["held"] += 1
        kv_tokens = sum(s["held"] for s in self._alive.values())
        for sequence in self._alive.values():
            sequence["left"] -= 1
            sequence["last_s"] = self.now_s
        done = {key: s for key, s in self._alive.items() if s["left"] == 0}
        self._alive = {key: s for key, s in self._alive.items() if s["left"]}
        self.begins_s.append(began_s)
        self.kv_tokens.append(kv_tokens)
        self.records.append(
            record(
                at=self.now_s,
                prefill_requests=len(arrivals),
                prefill_tokens=sum(prompt for prompt, _ in arrivals),
                decode_seqs=len(decoding),
                decode_tokens=len(decoding),
                running=len(self._alive),
                period_s=min((self.now_s - t for t in last_tokens), default=None),
                elapsed_ms=0.01,
                finished=[
                    [s["held"], s["first_s"] - s["began_s"], self.now_s - s["first_s"]]
                    for s in done.values()
                ],
            )
        )

    def play(self, load: list[tuple[int, int, float]], rest_s: float = 0.5) -> None:
        """Requests (prompt, output, step time) one after the other, each joining at the next step;
        a prompt of 0 waits until the engine idles, and then some."""
        for prompt, output, lasts_s in load:
            while prompt == 0 and self._alive:
                self.step([], lasts_s)
            self.now_s += rest_s if prompt == 0 else 0.0
            self.step([(max(prompt, 1), output)], lasts_s)
        while self._alive:
            self.step([], 0.003)


def record(**changes: Any) -> Record:
    return {
        "at": ORIGIN_S,
        "prefill_requests": 0,
        "prefill_tokens": 0,
        "decode_seqs": 0,
        "decode_tokens": 0,
        "running": 0,
        "waiting": 0,
        "kv_usage": 0.0,
        "elapsed_ms": 1.0,
        "period_s": None,
        "cached_tokens": 0,
        "preempted": 0,
        "finished": [],
    } | changes


LOADS = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 6), st.floats(0.001, 0.2)), min_size=1, max_size=12
)


@given(load=LOADS, seed=st.integers(0, 99))
def test_late_records_leave_step_times_exact(load: list[tuple[int, int, float]], seed: int) -> None:
    truth = Truth()
    truth.play(load)
    ends_s = np.array([r["at"] for r in truth.records])
    # Each spell has one record that came through at once; without one, the spell would be placed late.
    delays_s = np.random.default_rng(seed).exponential(0.004, len(ends_s))
    heads = np.array([i == 0 or not truth.records[i - 1]["running"] for i in range(len(ends_s))])
    delays_s[heads] = 0.0
    # Where no sequence was decoding, all that is known is when the records came.
    single = [i for i, r in enumerate(truth.records) if r["period_s"] is None and not heads[i]]
    assert not single
    late = [r | {"at": r["at"] + d} for r, d in zip(truth.records, delays_s, strict=True)]
    steps = server_steps(late, REPLICA, ORIGIN_S)
    assert np.allclose(steps["t_s"], ends_s - ORIGIN_S, atol=1e-9)
    assert np.allclose(steps["step_s"], ends_s - np.array(truth.begins_s), atol=1e-9)
    assert list(steps["kv_tokens"]) == truth.kv_tokens
    assert np.array_equal(steps["gap_s"].isna(), heads)


def test_the_log_of_elapsed_time_is_not_believed() -> None:
    truth = Truth()
    truth.play([(64, 8, 0.03)])
    assert server_steps(truth.records, REPLICA, ORIGIN_S)["step_s"].min() > 0.002


def test_a_spell_in_which_nobody_finished_has_no_known_beginning() -> None:
    truth = Truth()
    truth.step([(10, 5)], 0.01)
    truth.step([], 0.01)
    steps = server_steps(truth.records, REPLICA, ORIGIN_S)
    assert len(steps) == 1  # the second; the first began nobody knows when
    assert np.isclose(steps["step_s"].iloc[0], 0.01)


def test_chunks_of_a_prompt_alone_are_separated_by_their_records() -> None:
    chunks = [
        record(at=ORIGIN_S + 0.10, prefill_requests=1, prefill_tokens=100, running=1),
        record(
            at=ORIGIN_S + 0.15,
            prefill_requests=1,
            prefill_tokens=40,
            finished=[[140, 0.13, 0.0]],
        ),
    ]
    steps = server_steps(chunks, REPLICA, ORIGIN_S)
    assert np.allclose(steps["step_s"], [0.08, 0.05])
    assert list(steps["kv_tokens"]) == [100, 140]


def test_after_a_preemption_the_usage_is_believed_until_the_engine_idles() -> None:
    ledger = CacheLedger(1000)
    assert ledger.tokens(record(prefill_tokens=500, running=2, kv_usage=0.5)) == 500
    assert ledger.tokens(record(prefill_tokens=9, running=2, kv_usage=0.3, preempted=1)) == 300
    assert ledger.tokens(record(decode_tokens=1, running=1, kv_usage=0.31)) == 310
    ledger.tokens(record(decode_tokens=1, kv_usage=0.0))
    assert ledger.tokens(record(prefill_tokens=7, running=1, kv_usage=0.01)) == 7


def test_tokens_from_the_prefix_cache_are_in_the_cache_and_counted() -> None:
    hit = record(prefill_tokens=4, cached_tokens=16, running=1)
    assert CacheLedger(1000).tokens(hit) == 20
    assert cached_tokens([hit, record(), hit]) == 32


def test_no_step_is_a_typed_table() -> None:
    empty = server_steps([], REPLICA, ORIGIN_S)
    assert len(empty) == 0
    assert pd.api.types.is_float_dtype(empty["t_s"])
    assert pd.api.types.is_integer_dtype(empty["kv_tokens"])
