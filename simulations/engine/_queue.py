"""Requests on their way to a replica and in its queue, in compiled code.

Ties: of requests that arrive together the one with the lower index is first.

Source:  vllm/v1/core/sched/request_queue.py, 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import uniform
from simulations.engine._clients import gives_up_s, over
from simulations.engine._compiler import compiled
from simulations.engine._lists import ABANDON_HEAP, WAITING_HEAP, push, without_root
from simulations.engine._state import (
    FAILED,
    INBOX,
    NO,
    REJECTED,
    WAITING,
    Int,
    Limits,
    Records,
    View,
)


@compiled
def enqueue(i: Int, at_s: float, st: View, limits: Limits) -> None:
    """Hand request i to the replica, or have it refused as vLLM's server does, or failed."""
    e, q = st.row[0], st.requests
    request = q[i]
    request.replica = e.number
    request.version = e.version
    request.attempts += 1
    request.abandon_s = gives_up_s(i, q, st.gate)
    full = 0 <= limits.max_queued_requests < e.outstanding + 1
    if full or 0 <= limits.max_queued_tokens <= e.unanswered_tokens:
        e.rejected += 1
        request.status = REJECTED
        over(i, at_s, NO, st.follow, q, st.gate)
        return
    if e.error_share > 0 and uniform(st.gate.seed, i, np.int64(request.attempts)) < e.error_share:
        e.failed += 1
        request.status = FAILED
        over(i, at_s, NO, st.follow, q, st.gate)
        return
    request.status = INBOX
    request.queued_s = at_s + limits.overhead_s
    request.left = -1
    if e.inbox_tail < 0:
        e.inbox_head = i
    else:
        q[e.inbox_tail].left = i
    e.inbox_tail = i
    e.n_inbox += 1
    e.outstanding += 1
    e.unanswered_tokens += request.prompt
    if request.abandon_s < np.inf:
        e.abandon_root = push(ABANDON_HEAP, e.abandon_root, np.int64(i), q)
    e.quiet_until_s = min(e.quiet_until_s, request.queued_s)
    e.follow_s = min(e.follow_s, request.queued_s)


@compiled
def take_in(now_s: float, st: View, limits: Limits) -> None:
    """Requests that have reached the engine by now join its queue."""
    e, q = st.row[0], st.requests
    while e.inbox_head >= 0 and q[e.inbox_head].queued_s <= now_s:
        i = np.int64(e.inbox_head)
        e.inbox_head = q[i].left
        if e.inbox_head < 0:
            e.inbox_tail = -1
        if q[i].status == INBOX:
            e.n_inbox -= 1
            q[i].status = WAITING
            wait(i, NO, e, q, limits.priority)


@compiled
def wait(i: Int, front: bool, e: Records, q: Records, priority: bool) -> None:
    e.n_waiting += 1
    if priority:
        e.waiting_head = push(WAITING_HEAP, e.waiting_head, i, q)
        return
    q[i].left = e.waiting_head if front else -1
    if e.waiting_head < 0:
        e.waiting_head = i
        e.waiting_tail = i
    elif front:
        e.waiting_head = i
    else:
        q[e.waiting_tail].left = i
        e.waiting_tail = i


@compiled
def pop_waiting(e: Records, q: Records, priority: bool) -> None:
    if priority:
        e.waiting_head = without_root(WAITING_HEAP, e.waiting_head, q)
        return
    e.waiting_head = q[e.waiting_head].left
    if e.waiting_head < 0:
        e.waiting_tail = -1


@compiled
def first_waiting(e: Records, q: Records, priority: bool) -> Int:
    """The request at the head of the queue, -1 for none; those that have left it are dropped."""
    while e.waiting_head >= 0 and q[e.waiting_head].status != WAITING:
        pop_waiting(e, q, priority)
    return np.int64(e.waiting_head)
