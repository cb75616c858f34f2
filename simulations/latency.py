"""How long one engine step takes: the model that is fitted to measurements and runs the twin.

    step = base + per_seq x seqs + max(floor, per_token x padded(tokens))
                + per_kv_token x kv_tokens + per_prefill_attention x attention
                + prefill_step where the step computes any prompt

with non-negative coefficients, each a physical term: the host's work per step and per scheduled
sequence; the matrix multiplications, which take the time of reading the weights once (the floor)
until their arithmetic takes longer (the knee); the KV cache, read once per decoding sequence; and
attention of a prefill, which grows with what it attends to.

An engine with CUDA graphs has captured numbers of tokens (up to 512 by default). A step that only
decodes is one graph, computed for the next larger captured number. A step with a prefill is launched in
pieces: attention by the host, what lies between from graphs. Above the largest captured number the host
launches every kernel. So such a step is not over sooner than `launch_s` after it was decided: an idle
engine waits for the launch where it takes longer than the GPU; a busy one with async scheduling decides
a step while the one before it computes, which hides some of it or all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator, model_validator

from serving.errors import InputError
from serving.values import Estimate, Value, shown_html

if TYPE_CHECKING:
    import plotly.graph_objects as go

FloatArray = npt.NDArray[np.float64]


class ColdStart(Value):
    """Seconds from the decision to a replica that answers, in its parts.

    Parts of `start_s` that are not known stay 0 and are in the rest of it, which is spent first.
    """

    schedule_s: float = Field(1.0, ge=0)
    pull_s: float = Field(0.0, ge=0)
    start_s: float = Field(ge=0)
    """Process start to first answer: imports, weights, compile, warm-up."""
    load_s: float = Field(0.0, ge=0)
    """Of start_s: the weights, where the node has them in no cache."""
    load_cached_s: float | None = Field(None, ge=0)
    """Instead of load_s where another pod has loaded them on the node; None: the same."""
    compile_s: float = Field(0.0, ge=0)
    """Of start_s: torch.compile, where nothing is saved."""
    compile_saved_s: float | None = Field(None, ge=0)
    """Instead of compile_s where the node keeps what a pod compiled; None: the same."""
    capture_s: float = Field(0.0, ge=0)
    """Of start_s: CUDA graphs, which no cache holds."""
    warmup_s: float = Field(0.0, ge=0)
    """Of start_s: profiling, the KV cache, warm-up of kernels."""
    source: str
    """Where the figures come from: measured (and how) or assumed."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        known_s = self.load_s + self.compile_s + self.capture_s + self.warmup_s
        if known_s > self.start_s * (1 + 1e-9):
            raise ValueError(
                f"start_s(={self.start_s}) must be >= its parts, which are {known_s:.6g} s"
            )
        return self

    @property
    def total_s(self) -> float:
        return self.schedule_s + self.pull_s + self.start_s

    def starting(self, *, weights_cached: bool, compile_saved: bool) -> dict[str, float]:
        """Seconds of each part of one start, in order; what takes no time is left out."""
        known_s = self.load_s + self.compile_s + self.capture_s + self.warmup_s
        load_s, compile_s = self.load_s, self.compile_s
        if weights_cached and self.load_cached_s is not None:
            load_s = self.load_cached_s
        if compile_saved and self.compile_saved_s is not None:
            compile_s = self.compile_saved_s
        parts = {
            "process": max(0.0, self.start_s - known_s),
            "load": load_s,
            "compile": compile_s,
            "capture": self.capture_s,
            "warm-up": self.warmup_s,
        }
        return {name: seconds for name, seconds in parts.items() if seconds > 0}


class FittedRange(Value):
    """The largest step that the coefficients were fitted to."""

    prefill_tokens: int
    decode_seqs: int
    kv_tokens: int
    context_tokens: int = 0
    """The longest request, prompt and answer; 0 where it is not known."""


class Coefficients(Value):
    """One draw of what was fitted, from steps drawn again block by block."""

    base_s: float = Field(ge=0)
    per_seq_s: float = Field(ge=0)
    floor_s: float = Field(ge=0)
    per_token_s: float = Field(ge=0)
    per_kv_token_s: float = Field(ge=0)
    per_prefill_attention_s: float = Field(ge=0)
    prefill_step_s: float = Field(0.0, ge=0)
    step_overhead_s: float = Field(ge=0)


class LatencyModel(Value):
    """One replica of one variant on one kind of hardware."""

    variant: str
    base_s: float = Field(ge=0)
    """The host, per step."""
    per_seq_s: float = Field(0.0, ge=0)
    """The host and the sampler, per scheduled sequence, prefilling ones too."""
    floor_s: float = Field(0.0, ge=0)
    """Reading the weights once."""
    per_token_s: float = Field(ge=0)
    """Arithmetic per token of the step: prefill tokens and one for each decoding sequence."""
    per_kv_token_s: float = Field(ge=0)
    """Per token that the decoding sequences have in the cache."""
    per_prefill_attention_s: float = Field(0.0, ge=0)
    """Per (prefill token x token of its context)."""
    prefill_step_s: float = Field(0.0, ge=0)
    """The host again, per step that computes any prompt tokens."""
    prefill_launch_s: float = Field(0.0, ge=0)
    """From the decision of a step with a prefill to the end of its launch, up to `captured_tokens`."""
    uncaptured_launch_s: float = Field(0.0, ge=0)
    """The same for one of more tokens."""
    captured_tokens: int = Field(0, ge=0)
    """Of the largest CUDA graph that the engine captured; 0 where it captured none."""
    pad_to_tokens: tuple[int, ...] = ()
    """Ascending sizes to which a step that only decodes is rounded up; () where none is."""
    step_overhead_s: float = Field(0.0, ge=0)
    """Between two steps of a busy server: scheduling, output processing, HTTP."""
    request_overhead_s: float = Field(0.0, ge=0)
    """Per request, before the engine's queue: HTTP, tokenizing, between processes."""
    response_overhead_s: float = Field(0.0, ge=0)
    """From the end of a step to the client having its token: detokenizing, HTTP."""
    response_per_seq_s: float = Field(0.0, ge=0)
    """The same per sequence of the step, whose tokens the server hands out one after another."""
    request_noise_s: tuple[float, ...] = ()
    """Quantiles of measured minus predicted TTFT at the lightest load, median 0; one per request."""
    residuals: tuple[float, ...] = ()
    """Quantiles of measured over predicted time of held-out steps; one per step, () for none."""
    draws: tuple[Coefficients, ...] = ()
    """What the coefficients might as well have been: bootstrap draws over blocks of steps."""
    kv_blocks: int = Field(gt=0)
    """As vLLM reports it; derived only in a model that is assumed."""
    block_size_tokens: int = Field(16, gt=0)
    engine_version: str = ""
    """Of vLLM, as measured: what its scheduler does."""
    async_scheduling: bool = False
    """Whether the measured engine decided a step while the one before it computed."""
    cold_start: ColdStart
    fitted_range: FittedRange
    n_steps: int = Field(ge=0)
    shapes: tuple[str, ...] = ()
    """What was fitted: prompt/output tokens and load, as in "64/64 x8"."""
    heldout_error: dict[str, Estimate] = Field(default_factory=dict)
    """Relative errors on steps (and seconds of load) that were not fitted."""
    heldout_by: dict[str, Estimate] = Field(default_factory=dict)
    """Median relative error of held-out steps by shape and load."""
    assumed: bool = False
    """Whether it was computed from published figures instead of fitted to measurements."""
    source: str
    """What was measured: hardware, versions, run ids."""
    doubts: tuple[str, ...] = ()
    """Why measurements that were used by force cannot be trusted."""

    @field_validator("pad_to_tokens")
    @classmethod
    def _ascend(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"pad_to_tokens(={list(sizes)}) must be > 0 and ascend")
        return sizes

    def step_time_s(
        self,
        prefill_tokens: npt.ArrayLike,
        decode_seqs: npt.ArrayLike,
        kv_tokens: npt.ArrayLike,
        prefill_attention: npt.ArrayLike = 0.0,
        prefill_seqs: npt.ArrayLike = 0.0,
    ) -> FloatArray:
        """Seconds of each step in a busy engine, without `step_overhead_s`, `launch_s` and noise.

        Args:    prefill_tokens: (n_steps,), prompt tokens computed in the step.
                 decode_seqs: (n_steps,), sequences that produce one more token.
                 kv_tokens: (n_steps,), tokens that the decoding sequences have in the cache when
                     the step starts.
                 prefill_attention: (n_steps,), sum over prefills of tokens x context: n tokens
                     after c cached ones make n (c + (n + 1) / 2) pairs.
                 prefill_seqs: (n_steps,), sequences of which prompt tokens are computed.
        Returns: float array (n_steps,).
        """
        prefill = np.asarray(prefill_tokens, dtype=np.float64)
        decode = np.asarray(decode_seqs, dtype=np.float64)
        tokens = padded(prefill, decode, self.pad_to_tokens)
        return np.asarray(
            self.base_s
            + self.per_seq_s * (decode + np.asarray(prefill_seqs, dtype=np.float64))
            + np.maximum(self.floor_s, self.per_token_s * tokens)
            + self.per_kv_token_s * np.asarray(kv_tokens, dtype=np.float64)
            + self.per_prefill_attention_s * np.asarray(prefill_attention, dtype=np.float64)
            + self.prefill_step_s * (prefill > 0)
        )

    def launch_s(self, prefill_tokens: float, decode_seqs: float) -> float:
        """Seconds after its decision before which a step is not over."""
        if prefill_tokens == 0:
            return 0.0
        large = 0 < self.captured_tokens < prefill_tokens + decode_seqs
        return self.uncaptured_launch_s if large else self.prefill_launch_s

    def _repr_html_(self) -> str:
        """Which term costs what, and the errors on steps that were not fitted."""
        terms = {
            "host, each step": self.base_s,
            "host, each sequence": self.per_seq_s,
            "reading the weights": self.floor_s,
            "arithmetic, each token": self.per_token_s,
            "KV cache, each token in it": self.per_kv_token_s,
            "host, each step with a prefill": self.prefill_step_s,
            "launch of a prefill": self.prefill_launch_s,
            "launch of a prefill that no CUDA graph holds": self.uncaptured_launch_s,
            "cold start": self.cold_start.total_s,
        }
        rows = [(name, f"{1e6 * value_s:,.4g} us") for name, value_s in terms.items()]
        rows[-1] = ("cold start", f"{self.cold_start.total_s:,.4g} s")
        rows += [
            (
                f"held-out error, {name.replace('_', ' ')}",
                f"{e.value:.1%} ({e.low:.1%} to {e.high:.1%})",
            )
            for name, e in self.heldout_error.items()
        ]
        how = "assumed" if self.assumed else f"fitted to {self.n_steps:,} steps"
        return shown_html(
            f"Latency model of {self.variant}, {how}",
            pd.DataFrame(rows, columns=["term", "value"]),
            doubts=self.doubts,
            notes=[self.source],
        )

    def plot(self) -> go.Figure:
        """Time of a decode step by batch size and context, within what was fitted."""
        from simulations.figures import decode_step_time

        return decode_step_time(self)

    def draw(self, i: int) -> Self:
        """The model with the coefficients of draw `i`, and no draws.

        Raises:  InputError: there is no such draw.
        """
        if not 0 <= i < len(self.draws):
            raise InputError(
                f"i(={i}) must be >= 0 and < {len(self.draws)}",
                remedy="Fit a model with draws, or take one that it has.",
            )
        return self.model_copy(update={**self.draws[i].model_dump(), "draws": ()})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a fitted model from JSON."""
        return cls.read(Path(path))


def uncaptured(tokens: FloatArray, captured_tokens: int) -> npt.NDArray[np.bool_]:
    """(n_steps,): which steps have more tokens than the largest CUDA graph, where there are any."""
    return np.asarray((captured_tokens > 0) & (tokens > captured_tokens))


def padded(
    prefill_tokens: FloatArray, decode_seqs: FloatArray, pad_to_tokens: tuple[int, ...]
) -> FloatArray:
    """Tokens that a step computes: its own, or those of the captured size that holds them.

    Args:    prefill_tokens: (n_steps,); a step with any is never padded.
             decode_seqs: (n_steps,).
             pad_to_tokens: ascending; steps above the largest are not padded.
    Returns: float array (n_steps,).
    """
    tokens = np.asarray(prefill_tokens + decode_seqs, dtype=np.float64)
    if not pad_to_tokens:
        return tokens
    sizes = np.asarray(pad_to_tokens, dtype=np.float64)
    place = np.minimum(np.searchsorted(sizes, tokens), len(sizes) - 1)
    rounded = (prefill_tokens == 0) & (tokens > 0) & (tokens <= sizes[-1])
    return np.where(rounded, sizes[place], tokens)
