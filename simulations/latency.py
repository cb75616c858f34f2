"""How long one engine step takes: the model that is fitted to measurements and runs the twin.

    step = max(weight_floor, base + prefill + decode + kv + attention)

with non-negative coefficients, each a physical term: weights are read once per step whatever the
batch (the floor), prefill is arithmetic per token, decode is overhead per sequence, the KV cache
is read once per decoding sequence, and attention of a prefill grows with what it attends to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from serving.values import Estimate, Value

FloatArray = npt.NDArray[np.float64]


class ColdStart(Value):
    """Seconds from the decision to a replica that answers, in its parts."""

    schedule_s: float = Field(1.0, ge=0)
    pull_s: float = Field(0.0, ge=0)
    start_s: float = Field(ge=0)
    """Process start to first answer: imports, weights, compile, warm-up."""
    source: str
    """Where the figures come from: measured (and how) or assumed."""

    @property
    def total_s(self) -> float:
        return self.schedule_s + self.pull_s + self.start_s


class FittedRange(Value):
    """The largest step that the coefficients were fitted to."""

    prefill_tokens: int
    decode_seqs: int
    kv_tokens: int


class LatencyModel(Value):
    """One replica of one variant on one kind of hardware."""

    variant: str
    floor_s: float = Field(0.0, ge=0)
    base_s: float = Field(ge=0)
    per_prefill_token_s: float = Field(ge=0)
    per_decode_seq_s: float = Field(ge=0)
    per_kv_token_s: float = Field(ge=0)
    per_prefill_attention_s: float = Field(0.0, ge=0)
    """Per (prefill token x token of its context)."""
    step_overhead_s: float = Field(0.0, ge=0)
    """Between two steps of a busy server: scheduling, output processing, HTTP."""
    request_overhead_s: float = Field(0.0, ge=0)
    """Per request, before its first token: HTTP, tokenizing, queueing between processes."""
    kv_blocks: int = Field(gt=0)
    """As vLLM reports it, never derived."""
    block_size_tokens: int = Field(16, gt=0)
    cold_start: ColdStart
    fitted_range: FittedRange
    n_steps: int = Field(ge=0)
    heldout_error: dict[str, Estimate] = Field(default_factory=dict)
    """Relative errors on steps (and seconds of load) that were not fitted."""
    source: str
    """What was measured: hardware, versions, run ids."""
    doubts: tuple[str, ...] = ()
    """Why measurements that were used by force cannot be trusted."""

    def step_time_s(
        self,
        prefill_tokens: npt.ArrayLike,
        decode_seqs: npt.ArrayLike,
        kv_tokens: npt.ArrayLike,
        prefill_attention: npt.ArrayLike = 0.0,
    ) -> FloatArray:
        """Seconds of each step, without `step_overhead_s`.

        Args:    prefill_tokens: (n_steps,), prompt tokens computed in the step.
                 decode_seqs: (n_steps,), sequences that produce one more token.
                 kv_tokens: (n_steps,), tokens that the decoding sequences have in the cache when
                     the step starts.
                 prefill_attention: (n_steps,), sum over prefills of tokens x context: n tokens
                     after c cached ones make n (c + (n + 1) / 2) pairs.
        Returns: float array (n_steps,).
        """
        linear = (
            self.base_s
            + self.per_prefill_token_s * np.asarray(prefill_tokens, dtype=np.float64)
            + self.per_decode_seq_s * np.asarray(decode_seqs, dtype=np.float64)
            + self.per_kv_token_s * np.asarray(kv_tokens, dtype=np.float64)
            + self.per_prefill_attention_s * np.asarray(prefill_attention, dtype=np.float64)
        )
        return np.maximum(self.floor_s, linear)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a fitted model from JSON."""
        return cls.read(Path(path))
