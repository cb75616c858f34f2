"""The steps of several measurements as one table of physical terms, in blocks of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.errors import MeasurementError
from workbench.fit.prefills import contexts
from workbench.measure import Measurement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BASE, SEQS, PREFILL, DECODE, KV, ATTENTION, SERVER = range(7)
"""Columns of `Steps.terms`."""
MIN_STEPS = 30
_BLOCK_SPELLS = 6
_MAX_BLOCKS = 20
_LONGEST_SPELL = 12


@dataclass(frozen=True)
class Steps:
    """Measured steps. Rows are in order of time within each measurement.

    With async scheduling the engine hands out the next step before it looks at the result of this
    one: a prefill that takes long to launch shows up in the time of the step before it. What is known
    is the time of a spell: a prefill with the step before it and the one behind it. Without, each
    step is a spell of its own. Prefills that found such an engine idle are left out, where there are
    `MIN_STEPS` others (see `_woken`).

    Attributes:
        terms: (n, 7): 1, scheduled sequences, prefill tokens, decoding sequences, KV tokens that
            they read, prefill attention, and 1 where a server ran the step.
        step_s: (n,), its duration.
        spell: (n,), which steps are timed together; ascending.
        block: (n,), which block of consecutive spells a step belongs to.
        held_out: (n,), whether its block is kept from the fit that the errors are of.
        point: (n,), position of its measurement among those that were given.
    """

    terms: FloatArray
    step_s: FloatArray
    spell: IntArray
    block: IntArray
    held_out: BoolArray
    point: IntArray

    def __len__(self) -> int:
        return len(self.step_s)

    def where(self, chosen: BoolArray) -> Steps:
        """Some of the rows; whole spells."""
        return Steps(
            self.terms[chosen],
            self.step_s[chosen],
            self.spell[chosen],
            self.block[chosen],
            self.held_out[chosen],
            self.point[chosen],
        )

    @property
    def server(self) -> BoolArray:
        return self.terms[:, SERVER] > 0

    def starts(self) -> IntArray:
        """The first step of each spell."""
        new = np.ones(len(self), dtype=bool)
        new[1:] = self.spell[1:] != self.spell[:-1]
        return np.flatnonzero(new)

    def summed(self, values: FloatArray) -> FloatArray:
        """(n, ...) values of steps -> their sums over each spell."""
        return np.asarray(np.add.reduceat(values, self.starts(), axis=0), dtype=np.float64)


def steps_of(
    measurements: Sequence[Measurement], holdout: float, rng: np.random.Generator
) -> Steps:
    """All steps, of which `holdout` is set aside in whole blocks, the same share everywhere.

    Neighbouring steps are nearly the same step under the same noise: rows held out at random would
    be tested on what was fitted.

    Raises:  MeasurementError: too few steps.
    """
    found: list[Steps] = []
    spells, blocks = 0, 0
    tables = _tables(measurements)
    busy = sum(_busy_prefills(table, spell) for _, table, spell in tables)
    for point, table, spell in tables:
        measurement = measurements[point]
        terms = _terms(table, measurement)
        if measurement.replica.async_scheduling and busy >= MIN_STEPS:
            kept = ~np.isin(spell, spell[_woken(table)])
            if not kept.any():
                continue
            table, terms = table[kept], terms[kept]
            spell = np.unique(spell[kept], return_inverse=True)[1]
        count = int(spell[-1]) + 1
        parts = max(1, min(_MAX_BLOCKS, count // _BLOCK_SPELLS))
        block = spell * parts // count
        chosen = rng.permutation(parts)[: round(holdout * parts)]
        found.append(
            Steps(
                terms,
                table["step_s"].to_numpy(dtype=np.float64),
                spells + spell,
                blocks + block,
                np.isin(block, chosen),
                np.full(len(table), point),
            )
        )
        spells, blocks = spells + count, blocks + parts
    total = sum(map(len, found))
    if total < MIN_STEPS:
        raise MeasurementError(
            f"{total} engine steps are too few to fit (at least {MIN_STEPS})",
            remedy="Measure for longer, with an engine that logs its steps.",
        )
    return Steps(
        *(
            np.concatenate([getattr(steps, name) for steps in found])
            for name in ("terms", "step_s", "spell", "block", "held_out", "point")
        )
    )


def _tables(measurements: Sequence[Measurement]) -> list[tuple[int, pd.DataFrame, IntArray]]:
    """Position, steps in order of time and their spells, of each measurement that has any."""
    found = []
    for point, measurement in enumerate(measurements):
        table = measurement.steps[measurement.steps["step_s"] > 0].sort_values("t_s", kind="stable")
        if len(table):
            spell = _spells(table, together=measurement.replica.async_scheduling)
            found.append((point, table, spell))
    return found


def _woken(table: pd.DataFrame) -> BoolArray:
    """Prefills that found the engine idle.

    With async scheduling their launch is waited for; in a busy engine it is hidden behind the step
    before. The two differ by several milliseconds, and loads are of the second kind.
    """
    woken: BoolArray = table["gap_s"].isna().to_numpy() & (table["prefill_tokens"] > 0).to_numpy()
    return woken


def woken_prefills(measurements: Sequence[Measurement]) -> tuple[FloatArray, FloatArray]:
    """Tokens and seconds of the prefills that `steps_of` leaves out, as they found the engine idle."""
    tables = _tables(measurements)
    others = sum(_busy_prefills(table, spell) for _, table, spell in tables) >= MIN_STEPS
    found = [
        table[_woken(table)][["prefill_tokens", "step_s"]].to_numpy(dtype=np.float64)
        for point, table, _ in tables
        if others and measurements[point].replica.async_scheduling
    ]
    tokens, step_s = np.concatenate([*found, np.zeros((0, 2))]).T
    return tokens, step_s


def _busy_prefills(table: pd.DataFrame, spell: IntArray) -> int:
    """Spells with a prefill that found the engine busy."""
    idle = np.unique(spell[_woken(table)])
    with_any = np.unique(spell[(table["prefill_tokens"] > 0).to_numpy()])
    return len(np.setdiff1d(with_any, idle))


def _terms(table: pd.DataFrame, measurement: Measurement) -> FloatArray:
    prefill, requests, decode, kv = (
        table[name].to_numpy(dtype=np.float64)
        for name in ("prefill_tokens", "prefill_requests", "decode_seqs", "kv_tokens")
    )
    attention, half_done = contexts(table, measurement.requests)
    # In the log a step's own tokens count; what decodes read is what was there before it.
    read = np.maximum(kv - prefill - decode - half_done, 0)
    server = np.full(len(table), float(measurement.mode == "server"))
    one = np.ones(len(table))
    return np.column_stack([one, decode + requests, prefill, decode, read, attention, server])


def _spells(table: pd.DataFrame, *, together: bool) -> IntArray:
    """Numbers of the spells; see `Steps`."""
    n = len(table)
    if not together:
        return np.arange(n)
    prefill = table["prefill_tokens"].to_numpy() > 0
    idle_before = table["gap_s"].isna().to_numpy()
    spell = np.zeros(n, dtype=np.int64)
    length = 1
    for i in range(1, n):
        joined = (prefill[i] or prefill[i - 1]) and not idle_before[i] and length < _LONGEST_SPELL
        length = length + 1 if joined else 1
        spell[i] = spell[i - 1] + (not joined)
    return spell
