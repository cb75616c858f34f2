"""One vLLM replica moved on in time, in compiled code.

While every sequence decodes and nobody can be admitted, steps differ in the KV tokens they read
and in nothing else, so that a run of them is summed in closed form; all others go step by step.
"""

from __future__ import annotations

import numpy as np

from simulations._scheduler import begin, blocks, complete, finish
from simulations._state import NEVER, Limits, Replicas, Requests, Slots, Speed, compiled


@compiled
def _run_s(steps: int, first_s: float, growth_s: float, floor_s: float) -> float:
    """Sum over j < steps of max(floor, first + growth * j), growth >= 0, in closed form."""
    low = 0
    if first_s < floor_s:
        low = steps if growth_s <= 0 else min(steps, int(np.ceil((floor_s - first_s) / growth_s)))
    high = steps - low
    linear = high * first_s + growth_s * (0.5 * high * (high - 1) + float(low) * high)
    return low * floor_s + linear


@compiled
def _within(steps: int, room_s: float, first_s: float, growth_s: float, floor_s: float) -> int:
    """The largest k <= steps whose k steps last at most room."""
    if _run_s(steps, first_s, growth_s, floor_s) <= room_s:
        return steps
    low, high = 0, steps
    while high - low > 1:
        middle = (low + high) // 2
        if _run_s(middle, first_s, growth_s, floor_s) <= room_s:
            low = middle
        else:
            high = middle
    return low


@compiled
def _fitting(r: int, steps: int, q: Requests, e: Replicas, running: Slots, limits: Limits) -> int:
    """The largest k <= steps for which k more tokens of every running sequence find blocks."""
    low, high = 0, steps + 1
    k = steps
    while high - low > 1:
        need = 0
        for slot in range(e[r].n_running):
            i = running[r, slot]
            need += blocks(q[i].computed + k, limits) - blocks(q[i].computed, limits)
        if need <= e[r].free_blocks:
            low = k
        else:
            high = k
        k = (low + high) // 2
    return low


@compiled
def _decode_run(
    r: int,
    now_s: float,
    until_s: float,
    q: Requests,
    e: Replicas,
    running: Slots,
    speed: Speed,
    limits: Limits,
) -> int:
    """Run whole decode steps that end by `until` in closed form; how many (0: step by step).

    It stops with the first finished sequence, before the step that somebody may be admitted to and
    before the step that would run out of blocks. Blocked by max_seqs or blocks, the queue stays
    blocked until a sequence ends, since decoding only takes blocks.
    """
    n = e[r].n_running
    steps = np.iinfo(np.int64).max
    kv = 0
    for slot in range(n):
        i = running[r, slot]
        if q[i].done == 0 or q[i].computed != q[i].prompt + q[i].done - 1:
            return 0
        steps = min(steps, q[i].output - q[i].done)
        kv += q[i].computed
    admission_s = NEVER
    head = e[r].head
    if head >= 0 and n < min(limits.max_seqs, limits.max_step_tokens):
        total = q[head].prompt + q[head].done
        if blocks(total, limits) <= e[r].free_blocks:
            admission_s = q[head].queued_s
            if admission_s <= now_s:
                return 0
    gap_s = speed.step_overhead
    first_s = speed.base + speed.decode_seq * n + speed.kv_token * kv + gap_s
    growth_s = speed.kv_token * n
    floor_s = speed.floor + gap_s
    if admission_s < NEVER:
        # Steps that start before the admission: those that end before it, and one more.
        steps = min(steps, _within(steps, admission_s - now_s, first_s, growth_s, floor_s) + 1)
        before_s = _run_s(steps - 1, first_s, growth_s, floor_s)
        if before_s >= admission_s - now_s:
            steps -= 1
    if until_s < NEVER:
        steps = _within(steps, until_s - now_s, first_s, growth_s, floor_s)
    if steps > 0:
        steps = _fitting(r, steps, q, e, running, limits)
    if steps <= 0:
        return 0
    lasted_s = _run_s(steps, first_s, growth_s, floor_s)
    e[r].clock_s = now_s + lasted_s
    e[r].active_s += lasted_s
    e[r].busy_s += lasted_s - steps * gap_s
    finished = False
    for slot in range(n):
        i = running[r, slot]
        e[r].free_blocks -= blocks(q[i].computed + steps, limits) - blocks(q[i].computed, limits)
        q[i].computed += steps
        q[i].done += steps
        finished = finished or q[i].done >= q[i].output
    if finished:
        finish(r, e[r].clock_s, q, e, running, limits)
    return steps


@compiled
def _quiet_until(
    r: int, q: Requests, e: Replicas, running: Slots, speed: Speed, limits: Limits
) -> float:
    """A lower bound of the next end of a request: the fewest steps of the shortest duration."""
    if e[r].outstanding == 0:
        return NEVER
    shortest_s = max(speed.floor, speed.base) + speed.step_overhead
    steps = np.iinfo(np.int64).max
    for slot in range(e[r].n_running):
        i = running[r, slot]
        steps = min(steps, q[i].output - q[i].done)
    if e[r].n_waiting > 0 and e[r].n_running < limits.max_seqs:
        steps = 1
    start_s = e[r].clock_s
    if e[r].n_running == 0:
        start_s = max(start_s, q[e[r].head].queued_s)
    if e[r].flight_end_s < NEVER:
        start_s = e[r].flight_end_s
        steps -= 1
    return float(start_s + max(steps, 0) * shortest_s)


@compiled
def advance(
    r: int,
    until_s: float,
    q: Requests,
    e: Replicas,
    running: Slots,
    speed: Speed,
    limits: Limits,
    fast: bool,
) -> None:
    """Run one replica until a time: every step that starts before it, those that end by it
    completed.

    Args:    fast: sum decode runs in closed form; False steps through them (for tests).
    """
    while True:
        if e[r].flight_end_s < NEVER:
            if e[r].flight_end_s > until_s:
                break
            complete(r, q, e, running, limits)
        now_s = e[r].clock_s
        if e[r].n_running == 0:
            if e[r].head < 0:
                break
            now_s = max(now_s, q[e[r].head].queued_s)
        if now_s >= until_s:
            break
        summed = 0
        if fast and e[r].n_running > 0:
            summed = _decode_run(r, now_s, until_s, q, e, running, speed, limits)
        if summed > 0:
            continue
        begin(r, now_s, q, e, running, speed, limits)
    e[r].quiet_until_s = _quiet_until(r, q, e, running, speed, limits)
