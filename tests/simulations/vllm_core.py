"""vLLM's own Scheduler on the loop of its engine core, with mocked outputs on a model's clock.

No weights and no device. The loop is that of vllm/v1/engine/core.py: `step` and, with asynchronous
scheduling, `step_with_batch_queue` with two batches.
"""

from __future__ import annotations

import heapq
from collections import deque
from functools import lru_cache
from typing import Any

import numpy as np

from simulations.engine import SchedulerOptions
from simulations.engine.reference import Step, token_ids
from simulations.latency import LatencyModel
from tests.simulations.engine_cases import Case


@lru_cache(1)
def _config() -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash

    from workbench.model import shipped_checkpoint

    init_none_hash(sha256)
    return EngineArgs(
        model=str(shipped_checkpoint()),
        max_model_len=512,
        max_num_batched_tokens=512,
        enforce_eager=True,
        block_size=16,
        gpu_memory_utilization=0.3,
        kv_cache_memory_bytes=2**20,
    ).create_engine_config()


def vllm_scheduler(options: SchedulerOptions, kv_blocks: int) -> Any:
    """A real Scheduler with one group of full attention, as the options say."""
    import torch
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = _config()
    chosen, cache = config.scheduler_config, config.cache_config
    cache.block_size = options.block_size
    cache.num_gpu_blocks = kv_blocks
    cache.enable_prefix_caching = options.prefix_caching
    chosen.max_num_seqs = options.max_seqs
    chosen.max_num_batched_tokens = options.max_step_tokens
    chosen.enable_chunked_prefill = options.chunked_prefill
    chosen.long_prefill_token_threshold = options.long_prefill_tokens
    chosen.policy = "priority" if options.priority else "fcfs"
    chosen.async_scheduling = options.async_scheduling
    chosen.scheduler_reserve_full_isl = options.reserve_whole_prompt
    chosen.watermark = options.watermark_blocks / kv_blocks + 1e-9
    spec = FullAttentionSpec(
        block_size=options.block_size, num_kv_heads=1, head_size=8, dtype=torch.float32
    )
    return (AsyncScheduler if options.async_scheduling else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=kv_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=options.block_size,
        log_stats=True,
    )


def vllm_steps(case: Case) -> tuple[list[dict[str, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Every step that vLLM made, and when each request had its first token and its end."""
    core = VllmCore(case)
    core.run()
    return core.steps, {"first_token_s": core.first_s, "end_s": core.end_s}


class VllmCore:
    """The engine core and, for what the API server does, the least that is needed around it."""

    def __init__(self, case: Case) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher

        self.case = case
        self.latency: LatencyModel = case.latency
        self.scheduler = vllm_scheduler(case.options, case.latency.kv_blocks)
        self._hasher = None
        if case.options.prefix_caching:
            self._hasher = get_request_block_hasher(case.options.block_size, sha256)
        schedule, n = case.schedule, len(case.schedule)
        self._tokens = [token_ids(schedule, i) for i in range(n)]
        self.requests: dict[int, Any] = {}
        self.steps: list[dict[str, Any]] = []
        self.first_s, self.end_s = np.full(n, np.nan), np.full(n, np.nan)
        self.now_s = 0.0
        self._abandon_s = np.full(n, np.inf)
        self._over: set[int] = set()
        self._known: set[int] = set()
        self._inbox: deque[tuple[float, int]] = deque()
        self._queue: deque[tuple[Any, dict[str, int], float]] = deque()
        turns = case.concurrency is None and schedule.after is not None
        self._later = {int(b): i for i, b in enumerate(schedule.after) if b >= 0} if turns else {}
        first = range(n)
        if case.concurrency is not None:
            first = range(min(case.concurrency, n))
        self._closed = iter(range(len(first), n))
        starts = set(first) - set(self._later.values())
        self._coming = [(float(schedule.arrived_at_s[i]), i) for i in starts]
        heapq.heapify(self._coming)

    def run(self) -> None:
        """The busy loop, until everything is over."""
        depth = 2 if self.case.options.async_scheduling else 1
        last_s = 0.0
        while self._coming or self._inbox or self._queue or self.scheduler.has_requests():
            self._until(self.now_s)
            if not self.scheduler.has_requests() and not self._queue:
                upcoming = [self._coming[0][0]] if self._coming else []
                upcoming += [self._inbox[0][0]] if self._inbox else []
                if upcoming:
                    self.now_s = max(self.now_s, min(upcoming))
                continue
            if self.scheduler.has_requests():
                output = self.scheduler.schedule()
                chosen = dict(output.num_scheduled_tokens)
                end_s = self.now_s
                if chosen:
                    start_s = max(self.now_s, last_s)
                    last_s = end_s = start_s + self._duration_s(chosen, last_s)
                    self._note(chosen)
                sampled = {i: self._sampled(i) for i in chosen}
                self._queue.append((output, sampled, end_s))
                if len(self._queue) < depth and (chosen or self.scheduler.has_requests()):
                    continue
            output, sampled, end_s = self._queue.popleft()
            self._until(end_s)
            self.now_s = max(self.now_s, end_s)
            self._abort()
            self._update(output, sampled)

    def _until(self, t_s: float) -> None:
        """What the API server and the input queue take in up to a time."""
        while self._coming and self._coming[0][0] <= t_s:
            sent_s, i = heapq.heappop(self._coming)
            if self._full():
                self.now_s, kept_s = sent_s, self.now_s
                self._gone(i, answered=False)
                self.now_s = kept_s
                continue
            self._known.add(i)
            if self.case.schedule.patience_s is not None:
                self._abandon_s[i] = sent_s + self.case.schedule.patience_s[i]
            self._inbox.append((sent_s + self.latency.request_overhead_s, i))
            self._make(i, sent_s)
        if self._queue and t_s > self.now_s:
            return  # the core is busy: nobody reaches it before the step ends
        while self._inbox and self._inbox[0][0] <= t_s:
            self.scheduler.add_request(self.requests[self._inbox.popleft()[1]])
        if not self._queue and self.scheduler.has_unfinished_requests():
            self._abort()

    def _make(self, i: int, sent_s: float) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        schedule = self.case.schedule
        priority = 0 if schedule.priority is None else int(schedule.priority[i])
        self.requests[i] = Request(
            request_id=f"{i:06d}",
            prompt_token_ids=self._tokens[i][: schedule.prompt_tokens[i]],
            sampling_params=SamplingParams(
                max_tokens=int(schedule.output_tokens[i]), ignore_eos=True
            ),
            pooling_params=None,
            # No two requests reach a server at once; vLLM's order of those that did is no order in time.
            arrival_time=sent_s + 1e-9 * i,
            priority=priority,
            block_hasher=self._hasher,
        )

    def _full(self) -> bool:
        options = self.case.options
        most, tokens = options.max_queued_requests, options.max_queued_tokens
        if most is not None and len(self._known) + 1 > most:
            return True
        prompts = self.case.schedule.prompt_tokens
        prefilling = sum(prompts[i] for i in self._known if np.isnan(self.first_s[i]))
        return tokens is not None and prefilling >= tokens

    def _abort(self) -> None:
        from vllm.v1.request import RequestStatus

        gone = [i for i in self._known if self._abandon_s[i] <= self.now_s]
        for i in sorted(gone, key=lambda i: (self._abandon_s[i], i)):
            self.scheduler.finish_requests(f"{i:06d}", RequestStatus.FINISHED_ABORTED)
            self._inbox = deque(row for row in self._inbox if row[1] != i)
            self._gone(i, answered=False)

    def _gone(self, i: int, *, answered: bool) -> None:
        self._known.discard(i)
        seen_s = self.end_s[i] if answered else self.now_s
        if self.case.concurrency is not None:
            following = next(self._closed, None)
            if following is not None:
                heapq.heappush(self._coming, (seen_s, following))
        elif answered and i in self._later:
            turn = self._later[i]
            assert self.case.schedule.think_s is not None
            heapq.heappush(self._coming, (seen_s + float(self.case.schedule.think_s[turn]), turn))

    def _sampled(self, key: str) -> list[int]:
        """The next output token of a request whose prefill this step completes."""
        request = self.requests[int(key)]
        made = request.num_output_tokens + request.num_output_placeholders
        if not self.case.options.async_scheduling:
            made += 1
        if request.is_prefill_chunk:
            return []
        return [self._tokens[int(key)][request.num_prompt_tokens + made - 1]]

    def _duration_s(self, chosen: dict[str, int], last_s: float) -> float:
        step = Step(self.now_s, {}, set())
        for key, tokens in chosen.items():
            request = self.requests[int(key)]
            # After schedule() vLLM has already counted the tokens of the step.
            held = request.num_computed_tokens - tokens
            own = self.case.options.async_scheduling and not request.is_prefill_chunk
            known = request.num_tokens + request.num_output_placeholders - own
            if known > request.num_prompt_tokens and held == known - 1:
                step.decode_seqs += 1
                step.kv_tokens += held
            else:
                step.prefill_seqs += 1
                step.prefill_tokens += tokens
                step.attention += tokens * (held + (tokens + 1) / 2)
        step_s = self.latency.step_time_s(
            step.prefill_tokens, step.decode_seqs, step.kv_tokens, step.attention, step.prefill_seqs
        )
        launch_s = self.latency.launch_s(step.prefill_tokens, step.decode_seqs)
        hidden_s = max(0.0, last_s - self.now_s)
        return max(float(step_s), launch_s - hidden_s) + self.latency.step_overhead_s

    def _note(self, chosen: dict[str, int]) -> None:
        stats = self.scheduler.make_stats()
        pool = self.scheduler.kv_cache_manager.block_pool
        self.steps.append(
            {
                "tokens": {int(key): tokens for key, tokens in chosen.items()},
                "preemptions": sum(r.num_preemptions for r in self.requests.values()),
                "hit_tokens": stats.prefix_cache_stats.hits
                + stats.prefix_cache_stats.preempted_hits,
                "blocks_used": self.latency.kv_blocks - 1 - pool.get_num_free_blocks(),
            }
        )

    def _update(self, output: Any, sampled: dict[str, list[int]]) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        if not sampled:
            return
        alive = [i for i in self._known if i in self.requests]
        had = {i: self.requests[i].num_output_tokens for i in alive}
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=list(sampled),
                req_id_to_index={key: k for k, key in enumerate(sampled)},
                sampled_token_ids=[list(tokens) for tokens in sampled.values()],
            ),
        )
        after_s = self.now_s + self.latency.response_overhead_s
        after_s += self.latency.response_per_seq_s * len(sampled)
        for key in sampled:
            i = int(key)
            if i not in had or self.requests[i].num_output_tokens == had[i]:
                continue
            if had[i] == 0:
                self.first_s[i] = after_s
            if self.requests[i].is_finished():
                self.end_s[i] = after_s
                self._gone(i, answered=True)
