"""Who of the queue is admitted to a step, in compiled code.

Source:  vllm/v1/core/sched/scheduler.py (the loop over `self.waiting`), 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import touch_block
from simulations.engine._compiler import compiled
from simulations.engine._lists import take_slot
from simulations.engine._prefixes import hits_of
from simulations.engine._queue import first_waiting, pop_waiting
from simulations.engine._slots import blocks_of, grow
from simulations.engine._state import PREFILL, RUNNING, Int, Limits, View


@compiled
def admit(now_s: float, left: Int, cap: Int, st: View, limits: Limits) -> Int:
    """Serve the queue while budget, slots and blocks last: tokens left."""
    e, q, slots, outcomes = st.row[0], st.requests, st.slots, st.outcomes
    size = limits.block_size
    while left > 0 and e.n_running < limits.max_seqs:
        i = first_waiting(e, q, limits.priority)
        if i < 0:
            break
        request = q[i]
        total = request.prompt + request.out
        hits = 0
        if limits.caching:
            hits = hits_of(i, e.free_slot, st, limits)
        tokens = total - hits * size
        if 0 < cap < tokens:
            tokens = cap
        if not limits.chunked and tokens > left:
            break
        tokens = min(tokens, left)
        until = total if limits.reserve_whole else hits * size + tokens
        need = blocks_of(until, limits.block_size) - hits
        if e.n_running > 0:
            need += limits.watermark
        idle = 0
        for k in range(hits):
            idle += st.blocks[st.table[e.free_slot, k]].held == 0
        if need + idle > e.free_blocks:
            break
        s = take_slot(i, q, e, slots)
        pop_waiting(e, q, limits.priority)
        e.n_waiting -= 1
        e.n_prefill += 1
        request.status = RUNNING
        if np.isnan(outcomes.first_s[i]) and outcomes.preemptions[i] == 0:
            request.waited_s = now_s - request.queued_s
        outcomes.hit_tokens[i] += hits * size
        e.hit_tokens += hits * size
        slot = slots[s]
        slot.kind = PREFILL
        slot.cached = hits * size
        slot.listed = hits
        for k in range(hits):
            touch_block(st.table[s, k], st.blocks)
        e.free_blocks -= idle
        grow(s, tokens, st, limits)
        slot.tokens = tokens
        left -= tokens
    return np.int64(left)
