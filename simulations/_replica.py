"""One vLLM V1 replica in compiled code: the scheduler's decisions, step by step.

A step is decided at its start from what has arrived by then (`_begin`: vLLM's `schedule`) and takes
effect at its end (`_complete`: vLLM's `update_from_output`). While every sequence decodes and nobody can
be admitted, steps differ in the KV tokens they read and in nothing else, so that a run of them is
summed in closed form (`_decode_run`).

Ties: a request that arrives exactly when a step starts is in it; of requests that arrive together the one
with the lower index is first; the tail of the running list is preempted first.

Source:  vllm/v1/core/sched/scheduler.py and kv_cache_manager.py, 0.32, FCFS policy, no prefix caching,
         no speculative decoding, synchronous scheduling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
NEVER = np.inf

# The rest of the compiled core stands in _advance.py.


class Speed(NamedTuple):
    """The coefficients of a LatencyModel, in seconds."""

    floor: float
    base: float
    prefill_token: float
    decode_seq: float
    kv_token: float
    attention: float
    step_overhead: float


class Limits(NamedTuple):
    """What the engine may hold."""

    max_seqs: int
    max_step_tokens: int
    usable_blocks: int
    """One less than vLLM reports: it keeps a null block."""
    block_size: int
    overhead_s: float
    """From the sender to the engine's queue, per request."""
    closed_next: int
    """1 where the end of a request sends the next one (closed loop), 0 otherwise."""


class Requests(NamedTuple):
    """Arrays over requests, (n,)."""

    sent_s: FloatArray
    prompt: IntArray
    output: IntArray
    queued_s: FloatArray
    first_s: FloatArray
    end_s: FloatArray
    computed: IntArray
    done: IntArray
    preemptions: IntArray
    following: IntArray
    """The request behind this one in its waiting queue, -1 at the tail."""


class Replicas(NamedTuple):
    """Arrays over replicas, (r,); `running` and `chunk` are (r, max_seqs)."""

    running: IntArray
    chunk: IntArray
    n_running: IntArray
    n_waiting: IntArray
    head: IntArray
    tail: IntArray
    free_blocks: IntArray
    outstanding: IntArray
    clock_s: FloatArray
    """End of the last completed step."""
    flight_start_s: FloatArray
    flight_end_s: FloatArray
    """End of the step in flight, NEVER where there is none."""
    flight_busy_s: FloatArray
    quiet_until_s: FloatArray
    """No request can finish before this."""
    busy_s: FloatArray
    """Time inside steps: what the device reports as busy."""
    active_s: FloatArray
    """The same with the gaps between steps."""
    ttft_sum_s: FloatArray
    ttft_count: IntArray
    next_closed: IntArray
    """(1,): the next request of a closed loop."""


def new_requests(sent_s: FloatArray, prompt: IntArray, output: IntArray) -> Requests:
    """Requests of which nothing has happened yet; the inputs are copied."""
    n = len(sent_s)
    return Requests(
        sent_s=np.array(sent_s, dtype=np.float64),
        prompt=np.array(prompt, dtype=np.int64),
        output=np.array(output, dtype=np.int64),
        queued_s=np.full(n, np.nan),
        first_s=np.full(n, np.nan),
        end_s=np.full(n, np.nan),
        computed=np.zeros(n, dtype=np.int64),
        done=np.zeros(n, dtype=np.int64),
        preemptions=np.zeros(n, dtype=np.int64),
        following=np.full(n, -1, dtype=np.int64),
    )


def new_replicas(count: int, limits: Limits) -> Replicas:
    """Empty replicas at time 0."""
    ints: Any = lambda value=0: np.full(count, value, dtype=np.int64)  # noqa: E731
    floats: Any = lambda value=0.0: np.full(count, value, dtype=np.float64)  # noqa: E731
    return Replicas(
        running=np.zeros((count, limits.max_seqs), dtype=np.int64),
        chunk=np.zeros((count, limits.max_seqs), dtype=np.int64),
        n_running=ints(),
        n_waiting=ints(),
        head=ints(-1),
        tail=ints(-1),
        free_blocks=ints(limits.usable_blocks),
        outstanding=ints(),
        clock_s=floats(),
        flight_start_s=floats(),
        flight_end_s=floats(NEVER),
        flight_busy_s=floats(),
        quiet_until_s=floats(NEVER),
        busy_s=floats(),
        active_s=floats(),
        ttft_sum_s=floats(),
        ttft_count=ints(),
        next_closed=np.zeros(1, dtype=np.int64),
    )


@njit(cache=True)
def enqueue(r: int, i: int, at_s: float, q: Requests, e: Replicas, limits: Limits) -> None:
    """Hand request i to replica r; it reaches the queue after the request overhead."""
    q.queued_s[i] = at_s + limits.overhead_s
    q.following[i] = -1
    if e.head[r] < 0:
        e.head[r] = i
    else:
        q.following[e.tail[r]] = i
    e.tail[r] = i
    e.n_waiting[r] += 1
    e.outstanding[r] += 1
    e.quiet_until_s[r] = min(e.quiet_until_s[r], q.queued_s[i])


@njit(cache=True)
def _blocks(tokens: int, limits: Limits) -> int:
    return (tokens + limits.block_size - 1) // limits.block_size


@njit(cache=True)
def _run_s(steps: int, first_s: float, growth_s: float, floor_s: float) -> float:
    """Sum over j < steps of max(floor, first + growth * j), growth >= 0, in closed form."""
    low = 0
    if first_s < floor_s:
        low = steps if growth_s <= 0 else min(steps, int(np.ceil((floor_s - first_s) / growth_s)))
    high = steps - low
    linear = high * first_s + growth_s * (0.5 * high * (high - 1) + float(low) * high)
    return low * floor_s + linear


@njit(cache=True)
def _finish(r: int, now_s: float, q: Requests, e: Replicas, limits: Limits) -> None:
    """Take finished requests off the running list, the order of the others kept."""
    kept = 0
    for slot in range(e.n_running[r]):
        i = e.running[r, slot]
        if q.done[i] < q.output[i]:
            e.running[r, kept] = i
            kept += 1
            continue
        q.end_s[i] = now_s
        e.free_blocks[r] += _blocks(q.computed[i], limits)
        e.outstanding[r] -= 1
        if limits.closed_next == 1 and e.next_closed[0] < len(q.sent_s):
            following = e.next_closed[0]
            e.next_closed[0] += 1
            q.sent_s[following] = now_s
            enqueue(r, following, now_s, q, e, limits)
    e.n_running[r] = kept


@njit(cache=True)
def _complete(r: int, q: Requests, e: Replicas, limits: Limits) -> None:
    """The step in flight takes effect: tokens, first tokens, finished requests."""
    now_s = e.flight_end_s[r]
    e.busy_s[r] += e.flight_busy_s[r]
    e.active_s[r] += now_s - e.flight_start_s[r]
    e.flight_end_s[r] = NEVER
    e.clock_s[r] = now_s
    finished = False
    for slot in range(e.n_running[r]):
        i = e.running[r, slot]
        q.computed[i] += e.chunk[r, slot]
        if e.chunk[r, slot] > 0 and q.computed[i] == q.prompt[i] + q.done[i]:
            q.done[i] += 1
            if q.done[i] == 1:
                q.first_s[i] = now_s
                e.ttft_sum_s[r] += now_s - q.queued_s[i] + limits.overhead_s
                e.ttft_count[r] += 1
            finished = finished or q.done[i] >= q.output[i]
    if finished:
        _finish(r, now_s, q, e, limits)


@njit(cache=True)
def _preempt_tail(r: int, q: Requests, e: Replicas, limits: Limits) -> None:
    """The last of the running list loses its blocks and goes to the head of the queue."""
    e.n_running[r] -= 1
    i = e.running[r, e.n_running[r]]
    e.free_blocks[r] += _blocks(q.computed[i], limits)
    q.computed[i] = 0
    q.preemptions[i] += 1
    q.following[i] = e.head[r]
    if e.head[r] < 0:
        e.tail[r] = i
    e.head[r] = i
    e.n_waiting[r] += 1


@njit(cache=True)
def _schedule_running(r: int, budget: int, q: Requests, e: Replicas, limits: Limits) -> int:
    """Tokens left for new requests, or -1 where something was preempted (nobody is admitted)."""
    preempted = False
    slot = 0
    while slot < e.n_running[r]:
        i = e.running[r, slot]
        tokens = min(q.prompt[i] + q.done[i] - q.computed[i], budget)
        have = _blocks(q.computed[i], limits)
        need = _blocks(q.computed[i] + tokens, limits) - have
        while need > e.free_blocks[r] and slot < e.n_running[r]:
            _preempt_tail(r, q, e, limits)
            preempted = True
        if slot >= e.n_running[r]:
            break
        e.free_blocks[r] -= need
        e.chunk[r, slot] = tokens
        budget -= tokens
        slot += 1
    return -1 if preempted else budget


@njit(cache=True)
def _admit(r: int, budget: int, now_s: float, q: Requests, e: Replicas, limits: Limits) -> None:
    """First come, first served, while budget, sequences and blocks for the whole prompt last."""
    while budget > 0 and e.head[r] >= 0 and e.n_running[r] < limits.max_seqs:
        i = e.head[r]
        total = q.prompt[i] + q.done[i]
        if q.queued_s[i] > now_s or _blocks(total, limits) > e.free_blocks[r]:
            return
        tokens = min(total, budget)
        e.free_blocks[r] -= _blocks(tokens, limits)
        e.head[r] = q.following[i]
        e.n_waiting[r] -= 1
        e.running[r, e.n_running[r]] = i
        e.chunk[r, e.n_running[r]] = tokens
        e.n_running[r] += 1
        budget -= tokens


@njit(cache=True)
def _begin(r: int, now_s: float, q: Requests, e: Replicas, speed: Speed, limits: Limits) -> None:
    """Decide one step and put it in flight."""
    budget = _schedule_running(r, limits.max_step_tokens, q, e, limits)
    if budget > 0:
        _admit(r, budget, now_s, q, e, limits)
    prefill = 0
    decode = 0
    kv = 0
    attention = 0.0
    for slot in range(e.n_running[r]):
        i = e.running[r, slot]
        tokens = e.chunk[r, slot]
        if q.done[i] > 0 and q.computed[i] == q.prompt[i] + q.done[i] - 1:
            decode += 1
            kv += q.computed[i]
        else:
            prefill += tokens
            attention += tokens * (q.computed[i] + 0.5 * (tokens + 1))
    linear = speed.base + speed.prefill_token * prefill + speed.decode_seq * decode
    step_s = max(speed.floor, linear + speed.kv_token * kv + speed.attention * attention)
    e.flight_start_s[r] = now_s
    e.flight_busy_s[r] = step_s
    e.flight_end_s[r] = now_s + step_s + speed.step_overhead
