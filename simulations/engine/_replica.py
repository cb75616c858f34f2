"""One vLLM replica moved on in time, in compiled code: the engine's loop.

While all that runs decodes and nobody can be admitted, steps differ in the KV tokens they read and
in their noise, and a loop of a few instructions makes them.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import take_blocks
from simulations.engine._compiler import compiled
from simulations.engine._complete import complete
from simulations.engine._leaving import abandon
from simulations.engine._queue import take_in
from simulations.engine._state import NEVER, Int, Int32Array, Limits, Records, Speed, View
from simulations.engine._step import begin, step_s_of


@compiled
def _next_finish(e: Records, finish: Int32Array, ring: Int) -> Int:
    """Rounds until the first DECODE slot has all its tokens; there is one."""
    at = max(e.scanned, e.rounds)
    while finish[(at + 1) % ring] < 0:
        at += 1
    e.scanned = at
    return np.int64(at + 1 - e.rounds)


@compiled
def _abandoned_from(st: View) -> float:
    """A lower bound of the next time at which a client gives up with effect."""
    e, q = st.row[0], st.requests
    if e.outstanding == 0 or e.abandon_root < 0:
        return NEVER
    # It takes effect when a step ends, or with the next decision.
    bound_s = max(q[e.abandon_root].abandon_s, e.clock_s)
    if e.updated < e.step:
        return float(max(bound_s, st.flights[(e.updated + 1) % 2].end_s))
    if e.n_running + e.n_waiting == 0:
        bound_s = max(bound_s, q[e.inbox_head].queued_s)
    return float(np.nextafter(bound_s, NEVER))


@compiled
def _quiet_until(bound_s: float, st: View, speed: Speed, limits: Limits) -> float:
    """A lower bound of the next time at which a request leaves, and it is no later than `bound`."""
    e, q = st.row[0], st.requests
    if e.outstanding == 0:
        return NEVER
    shortest_s = speed.shortest * e.slowdown
    for step in range(e.updated + 1, e.step + 1):
        flight = st.flights[step % 2]
        row = st.news[step % 2]
        for k in range(flight.count):
            if row[k] % 2 == 1:
                bound_s = min(bound_s, flight.end_s)
    start_s = max(e.clock_s, e.last_end_s)
    if e.n_decode > 0:
        bound_s = min(bound_s, start_s + _next_finish(e, st.finish, limits.ring) * shortest_s)
    if e.n_prefill > 0 or e.n_waiting > 0:
        bound_s = min(bound_s, start_s + shortest_s)
    if e.n_inbox > 0:
        start_s = max(start_s, q[e.inbox_head].queued_s)
        bound_s = min(bound_s, start_s + limits.min_output * shortest_s)
    return float(bound_s)


@compiled
def _decode_run(until_s: float, st: View, speed: Speed, limits: Limits) -> bool:
    """Steps in which all that runs decodes and nothing else happens; whether there were any.

    It ends before the step that somebody may be admitted to, that brings a last token or that
    lacks blocks, and before a step that would not be over by `until`.
    """
    e, q = st.row[0], st.requests
    n = np.int64(e.n_decode)
    if n == 0 or n != e.n_running or (e.n_waiting > 0 and n < limits.max_seqs):
        return False
    if e.step - e.updated != limits.depth - 1 or len(st.pairs) > 0:
        return False
    stop_s = until_s
    if e.n_inbox > 0:
        stop_s = min(stop_s, q[e.inbox_head].queued_s)
    give_up_s = NEVER if e.abandon_root < 0 else q[e.abandon_root].abandon_s
    gap_s = speed.overhead if len(speed.given_s) == 0 else 0.0
    before = e.step
    nothing = np.int64(0)
    last = e.step + _next_finish(e, st.finish, limits.ring) - 1
    while e.step < last and e.clock_s < stop_s:
        oldest = st.flights[(e.updated + 1) % 2]
        if limits.depth == 2 and (oldest.count > 0 or oldest.end_s > until_s):
            break
        need = st.phase_count[e.rounds % limits.block_size]
        if need > e.free_blocks:
            break
        step = e.step + 1
        step_s = step_s_of(step, nothing, nothing, n, e.kv_tokens, 0.0, e.seed, speed)
        step_s *= e.slowdown
        start_s = max(e.clock_s, e.last_end_s)
        end_s = start_s + step_s + gap_s
        done_s = oldest.end_s if limits.depth == 2 else end_s
        if done_s > until_s or give_up_s <= done_s:
            break
        if limits.depth == 2:
            e.busy_s += oldest.busy_s
            e.active_s += oldest.end_s - oldest.start_s
            flight = st.flights[step % 2]
            flight.start_s = start_s
            flight.end_s = end_s
            flight.busy_s = step_s
            flight.count = 0
            flight.overlap = 1
        else:
            e.busy_s += step_s
            e.active_s += end_s - start_s
        e.free_blocks -= need
        if limits.caching:
            take_blocks(np.int64(need), st.blocks, st.lookup)
        e.rounds += 1
        e.kv_tokens += n
        e.generation_tokens += n
        e.step = step
        e.updated += 1
        e.last_end_s = end_s
        e.clock_s = done_s
    return bool(e.step > before)


@compiled
def advance(until_s: float, st: View, speed: Speed, limits: Limits) -> None:
    """Run one replica until a time: every step that is decided before it, those that end by it
    completed.

    It stops earlier where a request that ended has others sent.
    """
    e, q = st.row[0], st.requests
    while True:
        if _decode_run(until_s, st, speed, limits):
            continue
        now_s = e.clock_s
        in_flight = e.step - e.updated
        if in_flight < limits.depth and e.stuck == 0:
            present = e.n_running + e.n_waiting
            if in_flight + present == 0 and e.n_inbox > 0:
                now_s = max(now_s, q[e.inbox_head].queued_s)
            due = e.n_inbox > 0 and q[e.inbox_head].queued_s <= now_s
            if present > 0 or due:
                if now_s >= until_s:
                    break
                e.clock_s = now_s
                take_in(now_s, st, limits)
                if in_flight == 0:
                    abandon(now_s, st, limits)
                    if st.follow.coming[0] >= 0:
                        until_s = min(until_s, q[st.follow.coming[0]].sent_s)
                if e.n_running + e.n_waiting > 0:
                    made = begin(now_s, st, speed, limits)
                    e.stuck = np.int32(not made and in_flight > 0)
                continue
        if in_flight == 0:
            break
        end_s = st.flights[(e.updated + 1) % 2].end_s
        if end_s > until_s:
            break
        e.clock_s = end_s
        abandon(end_s, st, limits)
        complete(st, limits)
        e.stuck = 0
        if st.follow.coming[0] >= 0:
            until_s = min(until_s, q[st.follow.coming[0]].sent_s)
    e.follow_s = _abandoned_from(st)
    e.quiet_until_s = _quiet_until(e.follow_s, st, speed, limits)
    if len(st.follow.turn) > 0 or st.follow.closed[0] < st.follow.closed[1]:
        e.follow_s = e.quiet_until_s
    elif st.gate.retries == 0:
        e.follow_s = NEVER
