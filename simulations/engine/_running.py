"""Who of the running list is in a step, with preemption where blocks run short; compiled code.

Source:  vllm/v1/core/sched/scheduler.py (the loop over `self.running`), 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import take_blocks
from simulations.engine._compiler import compiled
from simulations.engine._lists import WAITING_HEAP, before
from simulations.engine._queue import wait
from simulations.engine._slots import blocks_of, grow, held_by, list_prefill, stop, undecode
from simulations.engine._state import (
    DECODE,
    DRAINING,
    PREFILL,
    STALLED,
    WAITING,
    YES,
    Int,
    Limits,
    Records,
    View,
)


@compiled
def _wanted(slot: Records, cap: Int, q: Records) -> Int:
    """Tokens that a running slot would have in this step, were there budget enough."""
    if slot.kind == DRAINING:
        return 0
    if slot.kind != PREFILL:
        return 1
    request = q[slot.request]
    tokens = request.prompt + request.out - slot.cached
    return np.int64(min(tokens, cap)) if cap > 0 else int(tokens)


@compiled
def plan_step(cap: Int, st: View, limits: Limits) -> Int:
    """Tokens and blocks for all that run, where there are enough for every decode.

    Returns: tokens left of the budget, or -1 where the running list must be walked.
    """
    e, slots = st.row[0], st.slots
    left = limits.max_step_tokens - e.n_decode
    need = st.phase_count[e.rounds % limits.block_size]
    count = 0
    decode_behind = False
    s = e.last_slot
    while count < e.n_prefill:  # the youngest, or nearly
        if slots[s].kind == PREFILL:
            st.order[count] = s
            count += 1
        elif slots[s].kind == DECODE:
            decode_behind = True
        s = slots[s].before
    for k in range(count - 1, -1, -1):  # the oldest first
        slot = slots[st.order[k]]
        tokens = _wanted(slot, cap, st.requests)
        if tokens > left and decode_behind:
            return -1
        tokens = min(tokens, left)
        slot.tokens = tokens
        left -= tokens
        held = held_by(slot, st.row[0], st.requests)
        need += blocks_of(held + tokens, limits.block_size) - blocks_of(held, limits.block_size)
    if need > e.free_blocks:
        return -1
    e.free_blocks -= need
    if limits.caching:
        take_blocks(np.int64(need), st.blocks, st.lookup)
        for k in range(count - 1, -1, -1):
            list_prefill(np.int64(st.order[k]), np.int64(slots[st.order[k]].tokens), st, limits)
    return np.int64(left)


@compiled
def _victim(st: View, limits: Limits) -> Int:
    """Who is preempted: the youngest, or by priority who would wait behind all the others.

    One order for both, also of those that arrived at once, or they could preempt each other for ever.
    """
    e, q, slots = st.row[0], st.requests, st.slots
    if not limits.priority:
        return np.int64(e.last_slot)
    worst = e.first_slot
    s = slots[worst].after
    while s >= 0:
        if before(WAITING_HEAP, slots[worst].request, slots[s].request, q):
            worst = s
        s = slots[s].after
    return np.int64(worst)


@compiled
def walk(cap: Int, st: View, limits: Limits) -> Int:
    """Serve the running list in order, with preemption: tokens left, -1 after a preemption."""
    e, q, slots = st.row[0], st.requests, st.slots
    s = np.int64(e.first_slot)
    while s >= 0:
        slot = slots[s]
        slot.tokens = 0
        if slot.kind == DECODE:
            undecode(s, st, limits)
            slot.kind = STALLED
        s = np.int64(slot.after)
    left = np.int64(limits.max_step_tokens)
    preempted = False
    s = np.int64(e.first_slot)
    while s >= 0 and left > 0:
        slot = slots[s]
        tokens = min(_wanted(slot, cap, st.requests), left)
        if tokens == 0:
            s = np.int64(slot.after)
            continue
        held = held_by(slot, st.row[0], st.requests)
        need = blocks_of(held + tokens, limits.block_size) - blocks_of(held, limits.block_size)
        gone = False
        skipped = 0
        following = np.int64(-1)
        while need > e.free_blocks and not gone:
            victim = _victim(st, limits)
            gone = victim == s
            following = np.int64(slot.after)
            if slots[victim].ticket < slot.ticket and slots[victim].tokens == 0:
                skipped += limits.victim_skips
            left += slots[victim].tokens
            i = np.int64(slots[victim].request)
            stop(victim, e.updated, YES, st, limits)
            q[i].status = WAITING
            st.outcomes.preemptions[i] += 1
            wait(i, YES, e, q, limits.priority)
            e.preemptions += 1
            preempted = True
        if gone and limits.self_ends:
            break
        if not gone:
            grow(s, tokens, st, limits)
            slot.tokens = tokens
            left -= tokens
            following = np.int64(slot.after)
        for _ in range(skipped):
            if following >= 0:
                following = np.int64(slots[following].after)
        s = following
    return -1 if preempted else int(left)
