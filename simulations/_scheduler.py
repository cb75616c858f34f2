"""vLLM V1's scheduler in compiled code: what one step holds, and what it leaves behind.

A step is decided at its start from what has arrived by then (`begin`: vLLM's `schedule`) and takes
effect at its end (`complete`: vLLM's `update_from_output`).

Ties: a request that arrives exactly when a step starts is in it; of requests that arrive together
the one with the lower index is first; the tail of the running list is preempted first.

Source:  vllm/v1/core/sched/scheduler.py and kv_cache_manager.py, 0.32: FCFS, chunked prefill, no
         prefix caching, no speculative decoding, synchronous scheduling.
"""

from __future__ import annotations

from simulations._state import NEVER, Limits, Replicas, Requests, Slots, Speed, compiled


@compiled
def blocks(tokens: int, limits: Limits) -> int:
    return (tokens + limits.block_size - 1) // limits.block_size


@compiled
def enqueue(r: int, i: int, at_s: float, q: Requests, e: Replicas, limits: Limits) -> None:
    """Hand request i to replica r; it reaches the queue after the request overhead."""
    q[i].queued_s = at_s + limits.overhead_s
    q[i].following = -1
    if e[r].head < 0:
        e[r].head = i
    else:
        q[e[r].tail].following = i
    e[r].tail = i
    e[r].n_waiting += 1
    e[r].outstanding += 1
    e[r].quiet_until_s = min(e[r].quiet_until_s, q[i].queued_s)


@compiled
def finish(r: int, now_s: float, q: Requests, e: Replicas, running: Slots, limits: Limits) -> None:
    """Take finished requests off the running list, the order of the others kept."""
    kept = 0
    for slot in range(e[r].n_running):
        i = running[r, slot]
        if q[i].done < q[i].output:
            running[r, kept] = i
            kept += 1
            continue
        q[i].end_s = now_s
        e[r].free_blocks += blocks(q[i].computed, limits)
        e[r].outstanding -= 1
        if limits.closed_loop and e[r].next_closed < len(q):
            following = e[r].next_closed
            e[r].next_closed += 1
            q[following].sent_s = now_s
            enqueue(r, following, now_s, q, e, limits)
    e[r].n_running = kept


@compiled
def complete(r: int, q: Requests, e: Replicas, running: Slots, limits: Limits) -> None:
    """The step in flight takes effect: tokens, first tokens, finished requests."""
    now_s = e[r].flight_end_s
    e[r].busy_s += e[r].flight_busy_s
    e[r].active_s += now_s - e[r].flight_start_s
    e[r].flight_end_s = NEVER
    e[r].clock_s = now_s
    finished = False
    for slot in range(e[r].n_running):
        i = running[r, slot]
        q[i].computed += q[i].chunk
        if q[i].chunk > 0 and q[i].computed == q[i].prompt + q[i].done:
            q[i].done += 1
            if q[i].done == 1:
                q[i].first_s = now_s
                e[r].ttft_sum_s += now_s - q[i].queued_s + limits.overhead_s
                e[r].ttft_count += 1
            finished = finished or q[i].done >= q[i].output
    if finished:
        finish(r, now_s, q, e, running, limits)


@compiled
def _preempt_tail(r: int, q: Requests, e: Replicas, running: Slots, limits: Limits) -> None:
    """The last of the running list loses its blocks and goes to the head of the queue."""
    e[r].n_running -= 1
    i = running[r, e[r].n_running]
    e[r].free_blocks += blocks(q[i].computed, limits)
    q[i].computed = 0
    q[i].preemptions += 1
    q[i].following = e[r].head
    if e[r].head < 0:
        e[r].tail = i
    e[r].head = i
    e[r].n_waiting += 1


@compiled
def _schedule_running(
    r: int, budget: int, q: Requests, e: Replicas, running: Slots, limits: Limits
) -> int:
    """Tokens left for new requests, or -1 where something was preempted (nobody is admitted)."""
    preempted = False
    slot = 0
    while slot < e[r].n_running:
        i = running[r, slot]
        tokens = min(q[i].prompt + q[i].done - q[i].computed, budget)
        have = blocks(q[i].computed, limits)
        need = blocks(q[i].computed + tokens, limits) - have
        while need > e[r].free_blocks and slot < e[r].n_running:
            _preempt_tail(r, q, e, running, limits)
            preempted = True
        if slot >= e[r].n_running:
            break
        e[r].free_blocks -= need
        q[i].chunk = tokens
        budget -= tokens
        slot += 1
    return -1 if preempted else budget


@compiled
def _admit(
    r: int, budget: int, now_s: float, q: Requests, e: Replicas, running: Slots, limits: Limits
) -> None:
    """First come, first served, while budget, sequences and blocks for the whole prompt last."""
    while budget > 0 and e[r].head >= 0 and e[r].n_running < limits.max_seqs:
        i = e[r].head
        total = q[i].prompt + q[i].done
        if q[i].queued_s > now_s or blocks(total, limits) > e[r].free_blocks:
            return
        tokens = min(total, budget)
        e[r].free_blocks -= blocks(tokens, limits)
        e[r].head = q[i].following
        e[r].n_waiting -= 1
        running[r, e[r].n_running] = i
        q[i].chunk = tokens
        e[r].n_running += 1
        budget -= tokens


@compiled
def begin(
    r: int, now_s: float, q: Requests, e: Replicas, running: Slots, speed: Speed, limits: Limits
) -> None:
    """Decide one step and put it in flight."""
    budget = _schedule_running(r, limits.max_step_tokens, q, e, running, limits)
    if budget > 0:
        _admit(r, budget, now_s, q, e, running, limits)
    prefill = 0
    decode = 0
    kv = 0
    attention = 0.0
    for slot in range(e[r].n_running):
        i = running[r, slot]
        tokens = q[i].chunk
        if q[i].done > 0 and q[i].computed == q[i].prompt + q[i].done - 1:
            decode += 1
            kv += q[i].computed
        else:
            prefill += tokens
            attention += tokens * (q[i].computed + 0.5 * (tokens + 1))
    linear = speed.base + speed.prefill_token * prefill + speed.decode_seq * decode
    step_s = max(speed.floor, linear + speed.kv_token * kv + speed.attention * attention)
    e[r].flight_start_s = now_s
    e[r].flight_busy_s = step_s
    e[r].flight_end_s = now_s + step_s + speed.step_overhead
