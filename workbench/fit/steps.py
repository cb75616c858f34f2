"""The steps of several measurements as one table of physical terms, in blocks of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.errors import MeasurementError
from workbench.measure import Measurement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

BASE, PREFILL, DECODE, KV, ATTENTION, SERVER = range(6)
"""Columns of `Steps.terms`."""
MIN_STEPS = 30
_BLOCK_STEPS = 6
_MAX_BLOCKS = 20


@dataclass(frozen=True)
class Steps:
    """Measured steps. Rows are in order of time within each measurement.

    Attributes:
        terms: (n, 6): 1, prefill tokens, decoding sequences, KV tokens that they read, prefill
            attention, and 1 where a server ran the step.
        step_s: (n,), its duration.
        block: (n,), which block of consecutive steps a step belongs to.
        held_out: (n,), whether its block is kept from the fit.
    """

    terms: FloatArray
    step_s: FloatArray
    block: IntArray
    held_out: BoolArray

    def __len__(self) -> int:
        return len(self.step_s)

    def where(self, chosen: BoolArray) -> Steps:
        """Some of the rows."""
        return Steps(
            self.terms[chosen], self.step_s[chosen], self.block[chosen], self.held_out[chosen]
        )

    @property
    def server(self) -> BoolArray:
        return self.terms[:, SERVER] > 0


def steps_of(
    measurements: Sequence[Measurement], holdout: float, rng: np.random.Generator
) -> Steps:
    """All steps, of which `holdout` is set aside in whole blocks, the same share everywhere.

    Neighbouring steps are nearly the same step under the same noise: rows held out at random would
    be tested on what was fitted.

    Raises:  MeasurementError: too few steps.
    """
    terms, took, blocks, held = [], [], [], []
    first = 0
    for measurement in measurements:
        table = measurement.steps[measurement.steps["step_s"] > 0].sort_values("t_s", kind="stable")
        n = len(table)
        if n == 0:
            continue
        prefill, requests, decode, kv = (
            table[name].to_numpy(dtype=np.float64)
            for name in ("prefill_tokens", "prefill_requests", "decode_seqs", "kv_tokens")
        )
        # The log does not say how the tokens were shared: equal shares, nothing cached before.
        attention = prefill * (prefill / np.maximum(requests, 1) + 1) / 2
        # In the log a step's own tokens count; what it reads is what was there before it.
        read = np.maximum(kv - prefill - decode, 0)
        server = np.full(n, float(measurement.mode == "server"))
        terms.append(np.column_stack([np.ones(n), prefill, decode, read, attention, server]))
        took.append(table["step_s"].to_numpy(dtype=np.float64))
        count = max(1, min(_MAX_BLOCKS, n // _BLOCK_STEPS))
        block = np.arange(n) * count // n
        chosen = rng.permutation(count)[: round(holdout * count)]
        blocks.append(first + block)
        held.append(np.isin(block, chosen))
        first += count
    if sum(map(len, took)) < MIN_STEPS:
        raise MeasurementError(
            f"{sum(map(len, took))} engine steps are too few to fit (at least {MIN_STEPS})",
            remedy="Measure for longer, with an engine that logs its steps.",
        )
    return Steps(
        np.concatenate(terms), np.concatenate(took), np.concatenate(blocks), np.concatenate(held)
    )
