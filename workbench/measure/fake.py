"""The fast stand-in for vLLM: continuous batching in virtual time, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Self

import numpy as np

from serving.errors import EngineError
from serving.plan import EngineArgs, Variant
from workbench.measure.drive import Produced, drive
from workbench.measure.engine import OnProgress, ReplicaInfo, Run, Step
from workbench.measure.outcome import Request

_BLOCK_TOKENS = 16
_KV_BLOCKS = 4096


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, the terms of `LatencyModel`."""

    base_s: float = 4e-3
    per_seq_s: float = 8e-5
    floor_s: float = 0.0
    per_token_s: float = 2e-5
    per_kv_token_s: float = 1e-7
    noise: float = 0.02
    """Standard deviation of the logarithm."""


@dataclass
class _Sequence:
    request_id: int
    prompt_left: int
    output_left: int
    cached_tokens: int = 0


@dataclass
class FakeEngine:
    """An `Engine` that answers at once, in time of its own.

    Running sequences first, then chunked prefill within the token budget, as vLLM does; its KV
    cache is never full. The same seed gives the same times.

    Args:    step_time: how long a step takes; a faster variant is a smaller one.
             start_s: what it claims to have taken to start.
    """

    variant: Variant
    engine_args: EngineArgs
    seed: int = 0
    step_time: StepTime = StepTime()
    start_s: float = 30.0
    runs: int = 0
    """How many loads it has answered."""
    _now_s: float = 0.0
    _waiting: list[_Sequence] = field(default_factory=list)
    _running: list[_Sequence] = field(default_factory=list)
    _open: bool = False

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    @property
    def replica(self) -> ReplicaInfo:
        return ReplicaInfo(
            engine_version="fake",
            kv_blocks=_KV_BLOCKS,
            block_size_tokens=_BLOCK_TOKENS,
            start_s=self.start_s,
        )

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self._open = False

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        if not self._open:
            raise EngineError("the engine is not running", remedy="Use it in a `with` block.")
        self.runs += 1
        return drive(
            self, requests, concurrency=concurrency, on_progress=on_progress, sent_when_due=True
        )

    def ended(self) -> str | None:
        return None

    # -- Stepper ---------------------------------------------------------------------------------

    def now_s(self) -> float:
        return self._now_s

    def sleep_until(self, at_s: float) -> None:
        # A nanosecond beyond, so that rounding never leaves the request not yet due.
        self._now_s = max(self._now_s, at_s) + 1e-9

    def add(self, request_id: int, request: Request) -> str | None:
        length = len(request.prompt_token_ids) + request.output_tokens
        if length > self.engine_args.max_model_len:
            return f"{length} tokens exceed max_model_len(={self.engine_args.max_model_len})"
        sequence = _Sequence(request_id, len(request.prompt_token_ids), request.output_tokens)
        self._waiting.append(sequence)
        return None

    def step(self) -> tuple[Step | None, list[Produced]]:
        decoding = [s for s in self._running if s.prompt_left == 0]
        budget = self.engine_args.max_num_batched_tokens - len(decoding)
        prefill: list[tuple[_Sequence, int]] = []
        for sequence in [s for s in self._running if s.prompt_left]:
            prefill.append((sequence, min(budget, sequence.prompt_left)))
            budget -= prefill[-1][1]
        while self._waiting and budget > 0 and len(self._running) < self.engine_args.max_num_seqs:
            sequence = self._waiting.pop(0)
            self._running.append(sequence)
            prefill.append((sequence, min(budget, sequence.prompt_left)))
            budget -= prefill[-1][1]
        return self._execute(decoding, [(s, tokens) for s, tokens in prefill if tokens])

    def _execute(
        self, decoding: list[_Sequence], prefill: list[tuple[_Sequence, int]]
    ) -> tuple[Step, list[Produced]]:
        for sequence in decoding:
            sequence.cached_tokens += 1
        for sequence, tokens in prefill:
            sequence.cached_tokens += tokens
            sequence.prompt_left -= tokens
        prefill_tokens = sum(tokens for _, tokens in prefill)
        kv_tokens = sum(s.cached_tokens for s in self._running)
        time = self.step_time
        tokens = prefill_tokens + len(decoding)
        self._now_s += float(
            time.base_s
            + time.per_seq_s * (len(decoding) + len(prefill))
            + max(time.floor_s, time.per_token_s * tokens)
            + time.per_kv_token_s * (kv_tokens - tokens)
        ) * float(np.exp(self._rng.normal(0.0, time.noise)))
        produced = []
        for sequence in [*decoding, *(s for s, _ in prefill if s.prompt_left == 0)]:
            sequence.output_left -= 1
            token = 1 + (sequence.request_id + sequence.output_left) % 97  # made up
            produced.append(Produced(sequence.request_id, (token,), sequence.output_left == 0))
        self._running = [s for s in self._running if s.output_left]
        step = Step(
            t_s=nan,
            step_s=nan,
            gap_s=nan,
            prefill_requests=len(prefill),
            prefill_tokens=prefill_tokens,
            decode_seqs=len(decoding),
            kv_tokens=kv_tokens,
            running=len(self._running),
            waiting=len(self._waiting),
        )
        return step, produced
