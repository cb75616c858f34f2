"""Requests that leave before they are answered, in compiled code: given up, or lost with a replica.

Ties: a client that gives up when a step ends gets nothing of it.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._clients import again_s, over
from simulations.engine._compiler import compiled
from simulations.engine._lists import ABANDON_HEAP, WAITING_HEAP, push, without_root
from simulations.engine._queue import first_waiting, pop_waiting
from simulations.engine._slots import stop
from simulations.engine._state import (
    ABORTED,
    FAILED,
    INBOX,
    NO,
    RUNNING,
    WAITING,
    Int,
    Limits,
    Records,
    View,
)


@compiled
def abandon(now_s: float, st: View, limits: Limits) -> None:
    """Requests whose clients have given up by now leave; a step in flight still computes them."""
    e, q = st.row[0], st.requests
    while e.abandon_root >= 0:
        i = np.int64(e.abandon_root)
        request = q[i]
        status = request.status
        outstanding = INBOX <= status <= RUNNING
        if outstanding and request.abandon_s > now_s:
            return
        e.abandon_root = without_root(ABANDON_HEAP, i, q)
        if not outstanding:
            continue
        if status == INBOX:
            e.n_inbox -= 1
        elif status == WAITING:
            e.n_waiting -= 1
        else:
            stop(np.int64(request.slot), e.updated, NO, st, limits)
        if again_s(i, now_s, q, st.gate) < np.inf:
            _withdraw(i, status, st, limits)
        request.status = ABORTED
        e.outstanding -= 1
        e.aborted += 1
        if np.isnan(st.outcomes.first_s[i]):
            e.unanswered_tokens -= request.prompt
        if over(i, now_s, NO, st.follow, q, st.gate):
            st.outcomes.first_s[i] = np.nan


@compiled
def _withdraw(i: Int, status: Int, st: View, limits: Limits) -> None:
    """Nothing of this replica links to request i any longer: it may soon be somewhere else."""
    e, q = st.row[0], st.requests
    if status == INBOX:
        e.inbox_head, e.inbox_tail = _without(i, e.inbox_head, e.inbox_tail, q)
    elif status == WAITING and not limits.priority:
        e.waiting_head, e.waiting_tail = _without(i, e.waiting_head, e.waiting_tail, q)
    elif status == WAITING:
        root = np.int64(-1)
        while e.waiting_head >= 0:
            j = np.int64(e.waiting_head)
            pop_waiting(e, q, limits.priority)
            if j != i:
                root = push(WAITING_HEAP, root, j, q)
        e.waiting_head = root
    for step in range(e.updated + 1, e.step + 1):
        flight, row = st.flights[step % 2], st.news[step % 2]
        kept = 0
        for k in range(flight.count):
            if row[k] // 2 != i:
                row[kept] = row[k]
                kept += 1
        flight.count = kept


@compiled
def _without(i: Int, head: Int, tail: Int, q: Records) -> tuple[Int, Int]:
    """The ends of a queue without request i, which is in it."""
    if head == i:
        return q[i].left, (np.int32(-1) if tail == i else tail)
    j = head
    while q[j].left != i:
        j = q[j].left
    q[j].left = q[i].left
    return head, (j if tail == i else tail)


@compiled
def lose(now_s: float, st: View, limits: Limits) -> None:
    """The replica dies: everything that it holds fails. Its row must be emptied then."""
    e, q = st.row[0], st.requests
    i = np.int64(e.inbox_head)
    while i >= 0:
        following = np.int64(q[i].left)
        if q[i].status == INBOX:
            _fail(i, now_s, st)
        i = following
    i = np.int64(first_waiting(e, q, limits.priority))
    while i >= 0:
        pop_waiting(e, q, limits.priority)
        _fail(i, now_s, st)
        i = np.int64(first_waiting(e, q, limits.priority))
    s = np.int64(e.first_slot)
    while s >= 0:
        _fail(np.int64(st.slots[s].request), now_s, st)
        s = np.int64(st.slots[s].after)


@compiled
def _fail(i: Int, now_s: float, st: View) -> None:
    st.row[0].failed += 1
    st.requests[i].status = FAILED
    if over(i, now_s, NO, st.follow, st.requests, st.gate):
        st.outcomes.first_s[i] = np.nan
