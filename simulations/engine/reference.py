"""One vLLM replica in plain Python, a step at a time: the specification of the engine twin.

Written from vLLM's own scheduler and not from the compiled core, which must equal it; slow and
obvious on purpose. What it holds of vLLM V1: the token budget, running requests first, chunked
prefill with its threshold, admission first come first served or by priority, KV blocks, preemption
by recompute, prefix caching by chains of blocks with vLLM's free order, asynchronous scheduling (the
next step is decided while one computes), queue limits and aborts.

Source:  vllm/v1/core/sched/scheduler.py, async_scheduler.py, kv_cache_manager.py, block_pool.py and
         v1/engine/core.py (0.32), for one group of full attention, without speculative decoding.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pandas as pd

from simulations.engine.options import SchedulerOptions
from simulations.latency import LatencyModel
from simulations.traffic import Schedule

NAN = float("nan")


@dataclass(eq=False)
class Request:
    """One request: what it asks for, where it stands, what came of it."""

    index: int
    sent_s: float
    prompt: int
    output: int
    priority: int = 0
    tokens: Sequence[int] = ()
    """Ids of prompt and output; () where nothing is shared."""
    abandon_s: float = float("inf")
    queued_s: float = NAN
    status: str = "waiting"  # running, done, aborted, rejected
    computed: int = 0
    """Tokens that have been scheduled (vLLM's num_computed_tokens)."""
    out: int = 0
    """Output tokens that came back."""
    placeholders: int = 0
    """Output tokens that steps in flight will bring."""
    blocks: list[int] = field(default_factory=list)
    cached_blocks: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    first_s: float = NAN
    end_s: float = NAN

    @property
    def order(self) -> tuple[int, float, int]:
        return self.priority, self.sent_s, self.index


@dataclass
class Step:
    """What one step holds, decided at a time."""

    decided_s: float
    tokens: dict[Request, int]
    outputs: set[Request]
    """Those whose next output token this step brings."""
    prefill_tokens: int = 0
    prefill_seqs: int = 0
    decode_seqs: int = 0
    kv_tokens: int = 0
    attention: float = 0.0
    preemptions: int = 0
    """By then: what is preempted may leave nothing to do, and that is no step."""
    hit_tokens: int = 0
    blocks_used: int = 0
    start_s: float = NAN
    end_s: float = NAN


class Blocks:
    """The pool of KV blocks: its free queue in order of eviction, and what is cached.

    A free block keeps what it holds until it is taken; equal blocks may exist, the oldest is found.
    """

    def __init__(self, count: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict((b, None) for b in range(1, count))
        self.held = [0] * count
        self.key: list[int | None] = [None] * count
        self._of_key: dict[int, dict[int, None]] = {}

    def find(self, key: int) -> int | None:
        found = self._of_key.get(key)
        return next(iter(found)) if found else None

    def take(self, count: int) -> list[int]:
        taken = list(islice(self.free, count))
        for block in taken:
            del self.free[block]
            self.held[block] = 1
            self._forget(block)
        return taken

    def touch(self, block: int) -> None:
        if self.held[block] == 0:
            del self.free[block]
        self.held[block] += 1

    def cache(self, block: int, key: int) -> None:
        self.key[block] = key
        self._of_key.setdefault(key, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """From the last to the first: of what is cached, the ends are evicted first."""
        first: list[int] = []
        for block in reversed(blocks):
            self.held[block] -= 1
            if self.held[block]:
                continue
            if self.key[block] is None:
                first.append(block)
            else:
                self.free[block] = None
        for block in reversed(first):
            self.free[block] = None
            self.free.move_to_end(block, last=False)

    def _forget(self, block: int) -> None:
        key = self.key[block]
        if key is None:
            return
        del self._of_key[key][block]
        self.key[block] = None


class ReferenceEngine:
    """The engine's loop on a clock of its own."""

    def __init__(
        self,
        schedule: Schedule,
        latency: LatencyModel,
        options: SchedulerOptions,
        *,
        concurrency: int | None = None,
    ) -> None:
        self.latency, self.options = latency, options
        self.requests = [
            Request(
                i,
                float(schedule.arrived_at_s[i]),
                int(schedule.prompt_tokens[i]),
                int(schedule.output_tokens[i]),
                0 if schedule.priority is None else int(schedule.priority[i]),
                token_ids(schedule, i) if options.prefix_caching else (),
            )
            for i in range(len(schedule))
        ]
        self._patience_s = schedule.patience_s
        self._follows: dict[int, tuple[int, float]] = {}
        open_loop = set(range(len(schedule)))
        if concurrency is not None:
            open_loop = set(range(min(concurrency, len(schedule))))
        elif schedule.after is not None and schedule.think_s is not None:
            for i, before in enumerate(schedule.after):
                if before >= 0:
                    self._follows[int(before)] = i, float(schedule.think_s[i])
                    open_loop.discard(i)
        self._closed = iter(range(len(open_loop), len(schedule))) if concurrency else iter(())
        self.coming = [(self.requests[i].sent_s, i) for i in open_loop]
        heapq.heapify(self.coming)
        self.inbox: deque[Request] = deque()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.flight: deque[Step] = deque()
        self.steps: list[Step] = []
        self.blocks = Blocks(latency.kv_blocks)
        self._keys: dict[tuple[int, ...], int] = {}
        self.preemptions = 0
        self.now_s = 0.0

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until nothing is left."""
        depth = 2 if self.options.async_scheduling else 1
        last_s = 0.0
        stuck = False  # the last step was empty: the loop waits for a result
        while True:
            self._take_in()
            if len(self.flight) < depth and not stuck and (self.waiting or self.running):
                if not self.flight:
                    self._abort()
                step = self.schedule()
                if step.tokens:
                    step.start_s = max(self.now_s, last_s)
                    launch_s = self.latency.launch_s(step.prefill_tokens, step.decode_seqs)
                    hidden_s = step.start_s - self.now_s
                    step_s = max(self.duration_s(step), launch_s - hidden_s)
                    last_s = step.end_s = step.start_s + step_s + self.latency.step_overhead_s
                    self.flight.append(step)
                    self.steps.append(step)
                elif self.flight:
                    stuck = True
                continue
            stuck = bool(self.flight)  # also with nothing to decide
            upcoming = [self.coming[0][0]] if self.coming else []
            upcoming += [self.inbox[0].queued_s] if self.inbox else []
            if self.flight and self.flight[0].end_s <= min(upcoming, default=np.inf):
                step = self.flight.popleft()
                self.now_s = step.end_s
                self._abort()
                self.update(step)
                stuck = False
            elif upcoming:
                self.now_s = min(upcoming)
            else:
                return

    def _take_in(self) -> None:
        """Requests that have been sent by now, and those that have reached the engine."""
        while self.coming and self.coming[0][0] <= self.now_s:
            sent_s, index = heapq.heappop(self.coming)
            request = self.requests[index]
            request.sent_s = sent_s
            if self._full():
                self._over(request, "rejected")
                continue
            request.queued_s = sent_s + self.latency.request_overhead_s
            if self._patience_s is not None:
                request.abandon_s = sent_s + float(self._patience_s[index])
            self.inbox.append(request)
        while self.inbox and self.inbox[0].queued_s <= self.now_s:
            self._push(self.inbox.popleft())

    def _known(self) -> Iterator[Request]:
        yield from self.inbox
        yield from self.waiting
        yield from self.running

    def _full(self) -> bool:
        """Whether the server answers 503 (vLLM's check_admission)."""
        most, tokens = self.options.max_queued_requests, self.options.max_queued_tokens
        if most is not None and sum(1 for _ in self._known()) + 1 > most:
            return True
        prefilling = (r.prompt for r in self._known() if np.isnan(r.first_s))
        return tokens is not None and sum(prefilling) >= tokens

    def _abort(self) -> None:
        """Clients that have given up by now; a step in flight still computes for them."""
        gone = [r for r in self._known() if r.abandon_s <= self.now_s]
        for request in sorted(gone, key=lambda r: (r.abandon_s, r.index)):
            for queue in (self.inbox, self.waiting, self.running):
                if request in queue:
                    queue.remove(request)
            self._release(request)
            self._over(request, "aborted")

    def _over(self, request: Request, status: str, seen_s: float | None = None) -> None:
        """Nothing more happens to it; somebody may have waited for that, who knows now or then."""
        request.status = status
        seen_s = self.now_s if seen_s is None else seen_s
        following = next(self._closed, None)
        if following is not None:
            heapq.heappush(self.coming, (seen_s, following))
        turn = self._follows.get(request.index)
        if turn is not None and status == "done":
            heapq.heappush(self.coming, (seen_s + turn[1], turn[0]))

    def _push(self, request: Request, *, front: bool = False) -> None:
        if self.options.priority:
            self.waiting.append(request)
            self.waiting.sort(key=lambda r: r.order)
        else:
            self.waiting.insert(0 if front else len(self.waiting), request)

    # -- one step --------------------------------------------------------------------------------

    def schedule(self) -> Step:
        """vLLM's Scheduler.schedule."""
        options = self.options
        step = Step(self.now_s, {}, set())
        budget = options.max_step_tokens
        preempted = self.preemptions
        several = len(self.running) + len(self.waiting) > 1
        cap = options.long_prefill_tokens if several or not options.lone_prefill_uncapped else 0
        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            if request.placeholders and request.out + request.placeholders >= request.output:
                position += 1  # all that it needs is in flight
                continue
            tokens = request.prompt + request.out + request.placeholders - request.computed
            tokens = min(tokens, cap or tokens, budget)
            if tokens == 0:
                position += 1
                continue
            while request.status == "running" and not self._grow(request, tokens):
                victim = self.running[-1]
                if options.priority:
                    victim = max(self.running, key=lambda r: r.order)
                    scheduled = victim in step.tokens
                    before = self.running.index(victim) < position
                    if before and (scheduled or not options.unscheduled_victim_skips_next):
                        position -= 1
                    budget += step.tokens.pop(victim, 0)
                self.running.remove(victim)
                self._preempt(victim)
                self.preemptions += 1
            if request.status != "running":
                if options.priority and not options.self_preemption_ends_step:
                    continue
                break
            step.tokens[request] = tokens
            budget -= tokens
            position += 1
        while self.preemptions == preempted and budget > 0 and self.waiting:
            request = self.waiting[0]
            if len(self.running) == options.max_seqs:
                break
            hit = self._hit(request)
            total = request.prompt + request.out
            tokens = total - len(hit) * options.block_size
            tokens = min(tokens, cap or tokens)
            if not options.chunked_prefill and tokens > budget:
                break
            tokens = min(tokens, budget)
            if not self._admit(request, tokens, hit):
                break
            self.running.append(self.waiting.pop(0))
            request.status = "running"
            step.tokens[request] = tokens
            step.hit_tokens += len(hit) * options.block_size
            budget -= tokens
        self._after(step)
        return step

    def _after(self, step: Step) -> None:
        """vLLM's _update_after_schedule, and what the step costs."""
        for request, tokens in step.tokens.items():
            have = request.out + request.placeholders
            if have > 0 and request.computed == request.prompt + have - 1:
                step.decode_seqs += 1
                step.kv_tokens += request.computed
            else:
                step.prefill_seqs += 1
                step.prefill_tokens += tokens
                step.attention += tokens * (request.computed + (tokens + 1) / 2)
            request.computed += tokens
            if request.computed == request.prompt + have:
                step.outputs.add(request)
                request.placeholders += 1
        step.preemptions = self.preemptions
        step.blocks_used = self.latency.kv_blocks - 1 - len(self.blocks.free)

    def duration_s(self, step: Step) -> float:
        """What the latency model says, without launch and gap."""
        step_s = self.latency.step_time_s(
            step.prefill_tokens,
            step.decode_seqs,
            step.kv_tokens,
            step.attention,
            step.prefill_seqs,
        )
        return float(step_s)

    def update(self, step: Step) -> None:
        """vLLM's update_from_output: tokens come back, also those of preempted requests."""
        handed_s = self.latency.response_per_seq_s * (step.prefill_seqs + step.decode_seqs)
        seen_s = self.now_s + self.latency.response_overhead_s + handed_s
        for request in step.tokens:
            if request.status not in ("running", "waiting") or request not in step.outputs:
                continue
            request.out += 1
            if request.status == "running":
                request.placeholders -= 1
                if self.options.async_scheduling:
                    self._cache(request, request.computed - request.placeholders)
            if request.out == 1:
                request.first_s = seen_s
            if request.out == request.output:
                request.end_s = seen_s
                self._release(request)
                (self.running if request in self.running else self.waiting).remove(request)
                self._over(request, "done", seen_s)

    # -- blocks ----------------------------------------------------------------------------------

    def _needed(self, tokens: int) -> int:
        return -(-tokens // self.options.block_size)

    def _grow(self, request: Request, tokens: int) -> bool:
        """More tokens for a running request."""
        need = self._needed(request.computed + tokens) - len(request.blocks)
        if need > len(self.blocks.free):
            return False
        request.blocks += self.blocks.take(need)
        self._cache(request, min(request.computed + tokens, request.prompt + request.out))
        return True

    def _admit(self, request: Request, tokens: int, hit: list[int]) -> bool:
        """The first tokens of a waiting request, if all that it has to compute would fit."""
        size = self.options.block_size
        evictable = sum(self.blocks.held[block] == 0 for block in hit)
        first = self._needed(len(hit) * size + tokens)
        whole = self._needed(request.prompt + request.out)
        need = (whole if self.options.reserve_whole_prompt else first) - len(hit)
        spare = self.options.watermark_blocks if self.running else 0
        if need + evictable + spare > len(self.blocks.free):
            return False
        for block in hit:
            self.blocks.touch(block)
        request.blocks = hit + self.blocks.take(first - len(hit))
        request.cached_blocks = len(hit)
        request.computed = len(hit) * size
        request.hit_tokens += request.computed
        self._cache(request, request.computed + tokens)
        return True

    def _release(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
        request.cached_blocks = 0

    def _preempt(self, victim: Request) -> None:
        self._release(victim)
        victim.computed = victim.placeholders = 0
        victim.preemptions += 1
        victim.status = "waiting"
        self._push(victim, front=True)

    def _key(self, request: Request, block: int) -> int:
        """A number for all tokens up to the end of a block: equal for equal tokens."""
        known = tuple(request.tokens[: (block + 1) * self.options.block_size])
        return self._keys.setdefault(known, len(self._keys))

    def _cache(self, request: Request, tokens: int) -> None:
        """Blocks that are full with this many tokens may be found from now on."""
        if not self.options.prefix_caching:
            return
        for block in range(request.cached_blocks, tokens // self.options.block_size):
            self.blocks.cache(request.blocks[block], self._key(request, block))
            request.cached_blocks = block + 1

    def _hit(self, request: Request) -> list[int]:
        """The longest cached beginning; the last token is always computed."""
        if not self.options.prefix_caching:
            return []
        hit: list[int] = []
        for block in range((request.prompt + request.out - 1) // self.options.block_size):
            found = self.blocks.find(self._key(request, block))
            if found is None:
                break
            hit.append(found)
        return hit


def token_ids(schedule: Schedule, index: int) -> list[int]:
    """Prompt and output of a request as numbers: equal where segments are."""
    longest = int((schedule.prompt_tokens + schedule.output_tokens).max()) + 1
    own = int(schedule.prompt_tokens[index])
    segments = ((index, own),) if schedule.segments is None else schedule.segments[index]
    answers = -1 - index, int(schedule.output_tokens[index])
    return [segment * longest + at for segment, n in (*segments, answers) for at in range(n)]


def reference_replica(
    schedule: Schedule,
    latency: LatencyModel,
    options: SchedulerOptions,
    *,
    concurrency: int | None = None,
) -> tuple[pd.DataFrame, list[Step]]:
    """What `simulate_replica` must return, without noise, and every step."""
    engine = ReferenceEngine(schedule, latency, options, concurrency=concurrency)
    engine.run()
    return pd.DataFrame(
        {
            "arrived_at_s": [r.sent_s for r in engine.requests],
            "first_token_s": [r.first_s for r in engine.requests],
            "end_s": [r.end_s for r in engine.requests],
            "cached_tokens": [r.hit_tokens for r in engine.requests],
            "preemptions": [r.preemptions for r in engine.requests],
        }
    ), engine.steps
