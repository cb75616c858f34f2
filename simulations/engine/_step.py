"""One step in compiled code, vLLM's `schedule`: what it holds, how long it takes, what follows.

reference.py says the same in plain Python. What makes it fast: sequences that only decode all gain a
token in a round, so that none of them is touched. Their tokens follow from the number of rounds,
their ends and their next blocks stand in lists by round. Only where blocks or budget run short does
a step walk the running list.

Ties: a request that arrives exactly when a step is decided can be in it.

Source:  vllm/v1/core/sched/scheduler.py and async_scheduler.py, 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._admission import admit
from simulations.engine._blocks import mixed
from simulations.engine._compiler import compiled
from simulations.engine._running import plan_step, walk
from simulations.engine._slots import decode, held_by, undecode
from simulations.engine._state import (
    DECODE,
    DRAINING,
    NO,
    PREFILL,
    STALLED,
    YES,
    Int,
    Limits,
    Speed,
    View,
)


@compiled
def _note(s: Int, ends: bool, step: Int, st: View) -> None:
    """The step brings this slot its first token or its last."""
    flight, slots = st.flights[step % 2], st.slots
    row = st.news[step % 2]
    ticket = slots[s].ticket
    at = flight.count
    while at > 0 and slots[st.requests[row[at - 1] // 2].slot].ticket > ticket:
        row[at] = row[at - 1]
        at -= 1
    row[at] = 2 * slots[s].request + ends
    flight.count += 1


@compiled
def step_s_of(
    step: Int, prefill: Int, seqs: Int, decode: Int, kv: Int, attention: float, seed: Int,
    speed: Speed,
) -> float:  # fmt: skip
    """Seconds of a step, with its share of noise."""
    if len(speed.given_s) > 0:
        return float(speed.given_s[min(step, len(speed.given_s)) - 1])
    tokens = prefill + decode
    if prefill == 0 and decode < len(speed.padded):
        tokens = speed.padded[decode]
    step_s = (
        speed.base
        + speed.seq * (seqs + decode)
        + max(speed.floor, speed.token * tokens)
        + speed.kv_token * kv
        + speed.attention * attention
    )
    if prefill > 0:
        step_s += speed.prefill
    if len(speed.residuals) > 0:
        drawn = mixed(mixed(seed, step), np.int64(1))
        step_s *= speed.residuals[drawn % np.uint64(len(speed.residuals))]
    return float(step_s)


@compiled
def begin(now_s: float, st: View, speed: Speed, limits: Limits) -> bool:
    """Decide one step and put it in flight; whether it holds anything."""
    e, q, slots = st.row[0], st.requests, st.slots
    cap = limits.cap
    if limits.lone_uncapped and e.n_running + e.n_waiting <= 1:
        cap = 0
    hit_tokens = e.hit_tokens
    left = plan_step(cap, st, limits)
    walked = left < 0
    if walked:
        left = walk(cap, st, limits)
    if left > 0:
        left = admit(now_s, left, cap, st, limits)
    step = e.step + 1
    prefill = 0
    seqs = 0
    decode = np.int64(e.n_decode)
    kv = e.kv_tokens
    attention = 0.0
    # Those that have tokens of their own in this step: the youngest, or all after a walk.
    pending = np.int64(e.n_prefill)
    s = np.int64(e.last_slot)
    while s >= 0 and (walked or pending > 0):
        slot = slots[s]
        pending -= slot.kind == PREFILL
        if slot.kind != DECODE and slot.tokens > 0:
            request = q[slot.request]
            held = held_by(slot, st.row[0], st.requests)
            if request.out > 0 and held == request.prompt + request.out - 1:
                decode += 1
                kv += held
            else:
                prefill += slot.tokens
                seqs += 1
                attention += slot.tokens * (held + 0.5 * (slot.tokens + 1))
        s = np.int64(slot.before)
    held_some = bool(prefill + decode > 0)
    if held_some:
        flight = st.flights[step % 2]
        flight.count = 0
        flight.seqs = np.int32(decode + seqs)
        flight.overlap = np.int32(e.updated < e.step)
        step_s = step_s_of(step, prefill, seqs, decode, kv, attention, e.seed, speed)
        flight.start_s = max(now_s, e.last_end_s)
        if prefill > 0 and len(speed.given_s) == 0:
            launch_s = speed.launch if prefill + decode <= speed.captured else speed.launch_large
            step_s = max(step_s, launch_s - (flight.start_s - now_s))
        step_s *= e.slowdown
        flight.busy_s = step_s
        gap_s = speed.overhead if len(speed.given_s) == 0 else 0.0
        flight.end_s = flight.start_s + step_s + gap_s
        e.last_end_s = flight.end_s
        if len(st.pairs) > 0:
            _trace(now_s, step, prefill, seqs, decode, kv, attention, st)
            if st.traced[0] <= len(st.steps):
                made = st.steps[st.traced[0] - 1]
                made.preemptions = e.preemptions
                made.hit_tokens = e.hit_tokens - hit_tokens
                made.blocks_used = limits.usable_blocks - e.free_blocks
        # One round for those that decode.
        if e.n_decode > 0:
            e.rounds += 1
            e.kv_tokens += e.n_decode
            e.generation_tokens += e.n_decode
            at = e.rounds % limits.ring
            while st.finish[at] >= 0:
                s = np.int64(st.finish[at])
                undecode(s, st, limits)
                slots[s].kind = DRAINING
                slots[s].last = step
                _note(s, YES, step, st)
            e.scanned = max(e.scanned, e.rounds)
    _settle(step, walked, held_some, st, limits)
    if held_some:
        e.step = step
    return held_some


@compiled
def _settle(step: Int, walked: bool, held_some: bool, st: View, limits: Limits) -> None:
    """After a step is decided: who decodes from now on, and who has all its tokens in flight.

    Args:    held_some: the step is not empty; an empty one leaves no gap.
    """
    e, slots = st.row[0], st.slots
    pending = np.int64(e.n_prefill)
    s = np.int64(e.last_slot)
    while s >= 0 and (walked or pending > 0):
        slot = slots[s]
        here, s = s, np.int64(slot.before)
        request = st.requests[slot.request]
        tokens = slot.tokens
        slot.tokens = 0
        first = False
        since = slot.since
        if slot.kind == PREFILL:
            pending -= 1
            slot.cached += tokens
            if tokens == 0 or slot.cached < request.prompt + request.out:
                continue
            e.n_prefill -= 1
            request.out += 1
            e.generation_tokens += 1
            first = np.isnan(st.outcomes.first_s[slot.request])
            since = step
        elif slot.kind == STALLED:
            request.out += tokens
            e.generation_tokens += tokens
            if held_some and tokens == 0:
                since = step + 1
        else:
            continue
        if request.out == request.output:
            slot.kind = DRAINING
            slot.last = step
            slot.since = since
            _note(here, YES, step, st)
            continue
        if first:
            _note(here, NO, step, st)
        decode(here, since, st, limits)


@compiled
def _trace(
    now_s: float, step: Int, prefill: Int, seqs: Int, decode: Int, kv: Int, attention: float,
    st: View,
) -> None:  # fmt: skip
    """A record of the step, as far as there is room."""
    e, slots = st.row[0], st.slots
    at = st.traced[0]
    st.traced[0] += 1
    if at < len(st.steps):
        made, flight = st.steps[at], st.flights[step % 2]
        made.decided_s = now_s
        made.start_s = flight.start_s
        made.end_s = flight.end_s
        made.attention = attention
        made.prefill_tokens = prefill
        made.prefill_seqs = seqs
        made.decode_seqs = decode
        made.kv_tokens = kv
        made.running = e.n_running
        made.waiting = e.n_waiting
    s = e.first_slot
    while s >= 0:
        slot = slots[s]
        tokens = 1 if slot.kind == DECODE else slot.tokens
        if tokens > 0:
            at = st.traced[1]
            if at < len(st.pairs):
                st.pairs[at, 0] = step
                st.pairs[at, 1] = slot.request
                st.pairs[at, 2] = tokens
            st.traced[1] += 1
        s = slot.after
