"""The engine in plain Python, a step at a time: what the compiled core must equal.

Written from vLLM's scheduler and not from the compiled core; slow and obvious on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from serving.plan import EngineArgs
from simulations.latency import LatencyModel
from simulations.traffic import Schedule


@dataclass(eq=False)
class Request:
    index: int
    arrived_s: float
    prompt: int
    output: int
    computed: int = 0
    tokens_out: int = 0
    blocks: int = 0
    preemptions: int = 0
    first_s: float = float("nan")
    end_s: float = float("nan")

    @property
    def tokens(self) -> int:
        return self.prompt + self.tokens_out


@dataclass
class ReferenceEngine:
    latency: LatencyModel
    engine: EngineArgs
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    now_s: float = 0.0
    steps: list[tuple[float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free = self.latency.kv_blocks - 1

    def _grow(self, request: Request, tokens: int) -> bool:
        size = self.latency.block_size_tokens
        need = -(-tokens // size) - request.blocks
        if need > self.free:
            return False
        self.free -= need
        request.blocks += need
        return True

    def _release(self, request: Request) -> None:
        self.free += request.blocks
        request.blocks = 0

    def schedule(self) -> dict[Request, int]:
        budget = self.engine.max_num_batched_tokens
        chosen: dict[Request, int] = {}
        preempted = False
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            tokens = min(request.tokens - request.computed, budget)
            while not self._grow(request, request.computed + tokens):
                victim = self.running.pop()
                self._release(victim)
                victim.computed = 0
                victim.preemptions += 1
                self.waiting.insert(0, victim)
                preempted = True
                if victim is request:
                    return chosen
            chosen[request] = tokens
            budget -= tokens
            position += 1
        while not preempted and budget > 0 and self.waiting:
            request = self.waiting[0]
            if len(self.running) == self.engine.max_num_seqs:
                break
            if -(-request.tokens // self.latency.block_size_tokens) > self.free:
                break
            tokens = min(request.tokens, budget)
            assert self._grow(request, tokens)
            self.running.append(self.waiting.pop(0))
            chosen[request] = tokens
            budget -= tokens
        return chosen

    def duration_s(self, chosen: dict[Request, int]) -> float:
        decodes = [r for r in chosen if r.tokens_out > 0 and r.computed == r.tokens - 1]
        prefills = {r: n for r, n in chosen.items() if r not in decodes}
        step_s = self.latency.step_time_s(
            sum(prefills.values()),
            len(decodes),
            sum(r.computed for r in decodes),
            sum(n * (r.computed + (n + 1) / 2) for r, n in prefills.items()),
        )
        self.steps.append((self.now_s, sum(prefills.values()), len(decodes)))
        return float(step_s) + self.latency.step_overhead_s

    def update(self, chosen: dict[Request, int]) -> list[Request]:
        finished = []
        for request, tokens in chosen.items():
            request.computed += tokens
            if request.computed < request.tokens:
                continue
            request.tokens_out += 1
            if request.tokens_out == 1:
                request.first_s = self.now_s
            if request.tokens_out == request.output:
                request.end_s = self.now_s
                self._release(request)
                self.running.remove(request)
                finished.append(request)
        return finished


def reference_replica(
    schedule: Schedule,
    latency: LatencyModel,
    engine: EngineArgs,
    *,
    concurrency: int | None = None,
) -> pd.DataFrame:
    """What `simulate_replica` must return."""
    core = ReferenceEngine(latency, engine)
    overhead_s = latency.request_overhead_s
    requests = [
        Request(i, float(t), int(p), int(o))
        for i, (t, p, o) in enumerate(
            zip(schedule.arrived_at_s, schedule.prompt_tokens, schedule.output_tokens, strict=True)
        )
    ]
    sent = len(requests) if concurrency is None else concurrency
    coming, later = requests[:sent], requests[sent:]
    while coming or core.waiting or core.running:
        if not core.waiting and not core.running:
            core.now_s = max(core.now_s, coming[0].arrived_s + overhead_s)
        while coming and coming[0].arrived_s + overhead_s <= core.now_s:
            core.waiting.append(coming.pop(0))
        chosen = core.schedule()
        core.now_s += core.duration_s(chosen)
        for _ in core.update(chosen):
            if later:
                later[0].arrived_s = core.now_s
                coming.append(later.pop(0))
    return pd.DataFrame(
        {
            "arrived_at_s": [r.arrived_s for r in requests],
            "first_token_s": [r.first_s for r in requests],
            "end_s": [r.end_s for r in requests],
            "preemptions": [r.preemptions for r in requests],
        }
    )
