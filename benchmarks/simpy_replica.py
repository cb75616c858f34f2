"""One vLLM replica as a plain SimPy model, one event per engine step: a peer of our engine twin.

What a first model of an engine looks like: a source of requests, and an engine that decides a step,
waits until it is over and hands out its tokens. Nothing is summed up and nothing is compiled.
KV blocks are taken for prompt and output at admission, so that nothing is ever preempted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from serving.plan import EngineArgs
from simulations.latency import LatencyModel
from simulations.traffic import Schedule


@dataclass(eq=False, slots=True)
class _Request:
    index: int
    prompt: int
    output: int
    computed: int = 0
    done: int = 0
    chunk: int = 0


@dataclass
class SimpyReplica:
    """First come, first served; running requests before waiting ones; prompts in chunks."""

    schedule: Schedule
    latency: LatencyModel
    engine: EngineArgs
    env: simpy.Environment = field(default_factory=simpy.Environment)
    waiting: deque[_Request] = field(default_factory=deque)
    running: list[_Request] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.free_blocks = self.latency.kv_blocks - 1
        self.end_s: npt.NDArray[np.float64] = np.full(len(self.schedule), np.nan)
        self._arrival = self.env.event()

    def run(self) -> npt.NDArray[np.float64]:
        """When each request ended."""
        self.env.process(self._source())
        self.env.process(self._serve())
        self.env.run()
        return self.end_s

    def _source(self) -> Generator[simpy.Event, Any, None]:
        drawn = zip(
            self.schedule.arrived_at_s.tolist(),
            self.schedule.prompt_tokens.tolist(),
            self.schedule.output_tokens.tolist(),
            strict=True,
        )
        for i, (at_s, prompt, output) in enumerate(drawn):
            yield self.env.timeout(at_s - self.env.now)
            self.waiting.append(_Request(i, prompt, output))
            if not self._arrival.triggered:
                self._arrival.succeed()

    def _serve(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.waiting and not self.running:
                self._arrival = self.env.event()
                yield self._arrival
            self._schedule()
            yield self.env.timeout(self._step_s())
            self._update()

    def _blocks(self, request: _Request) -> int:
        return -(-(request.prompt + request.output) // self.latency.block_size_tokens)

    def _schedule(self) -> None:
        budget = self.engine.max_num_batched_tokens
        for request in self.running:
            request.chunk = min(request.prompt + request.done - request.computed, budget)
            budget -= request.chunk
        while budget > 0 and self.waiting and len(self.running) < self.engine.max_num_seqs:
            request = self.waiting[0]
            if self._blocks(request) > self.free_blocks:
                break
            self.free_blocks -= self._blocks(request)
            self.running.append(self.waiting.popleft())
            request.chunk = min(request.prompt, budget)
            budget -= request.chunk

    def _step_s(self) -> float:
        model = self.latency
        tokens = kv = seqs = 0
        attention = 0.0
        for request in self.running:
            seqs += request.chunk > 0
            tokens += request.chunk
            if request.done > 0:
                kv += request.computed
            else:
                attention += request.chunk * (request.computed + (request.chunk + 1) / 2)
        return (
            model.base_s
            + model.per_seq_s * seqs
            + max(model.floor_s, model.per_token_s * tokens)
            + model.per_kv_token_s * kv
            + model.per_prefill_attention_s * attention
            + model.prefill_step_s * (attention > 0)
            + model.step_overhead_s
        )

    def _update(self) -> None:
        self.steps += 1
        finished = False
        for request in self.running:
            request.computed += request.chunk
            if request.chunk > 0 and request.computed == request.prompt + request.done:
                request.done += 1
                if request.done == request.output:
                    finished = True
                    self.end_s[request.index] = self.env.now
                    self.free_blocks += self._blocks(request)
        if finished:
            self.running = [r for r in self.running if r.done < r.output]
