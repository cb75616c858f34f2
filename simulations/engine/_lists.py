"""Heaps of requests and linked lists of slots, in compiled code.

The heaps are skew heaps (Sleator and Tarjan 1986) over links in the records: a merge costs
O(log n) amortised and no memory.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._compiler import compiled
from simulations.engine._state import Int, Int32Array, Records

COMING_HEAP, WAITING_HEAP, ABANDON_HEAP = np.arange(3)
"""By time sent; by priority, then time sent; by the time at which its client gives up."""


@compiled
def before(heap: Int, a: Int, b: Int, q: Records) -> bool:
    """Whether request a is in front of b; of equals the lower index is."""
    if heap == ABANDON_HEAP:
        if q[a].abandon_s != q[b].abandon_s:
            return bool(q[a].abandon_s < q[b].abandon_s)
        return bool(a < b)
    if heap == WAITING_HEAP and q[a].priority != q[b].priority:
        return bool(q[a].priority < q[b].priority)
    if q[a].sent_s != q[b].sent_s:
        return bool(q[a].sent_s < q[b].sent_s)
    return bool(a < b)


@compiled
def merge(heap: Int, a: Int, b: Int, q: Records) -> Int:
    """The root of two heaps made one; -1 is the empty heap."""
    root = np.int64(-1)
    parent = np.int64(-1)
    while a >= 0 and b >= 0:
        if before(heap, b, a, q):
            a, b = b, a
        if parent < 0:
            root = a
        elif heap == ABANDON_HEAP:
            q[parent].abandon_left = a
        else:
            q[parent].left = a
        parent = a
        if heap == ABANDON_HEAP:
            a = q[parent].abandon_right
            q[parent].abandon_right = q[parent].abandon_left
        else:
            a = q[parent].right
            q[parent].right = q[parent].left
    rest = a if a >= 0 else b
    if parent < 0:
        return rest
    if heap == ABANDON_HEAP:
        q[parent].abandon_left = rest
    else:
        q[parent].left = rest
    return root


@compiled
def push(heap: Int, root: Int, i: Int, q: Records) -> Int:
    """The root with request i in it."""
    if heap == ABANDON_HEAP:
        q[i].abandon_left = -1
        q[i].abandon_right = -1
    else:
        q[i].left = -1
        q[i].right = -1
    return merge(heap, np.int64(root), np.int64(i), q)


@compiled
def without_root(heap: Int, root: Int, q: Records) -> Int:
    """The root of what is left when the first one is taken."""
    left, right = np.int64(q[root].left), np.int64(q[root].right)
    if heap == ABANDON_HEAP:
        left, right = np.int64(q[root].abandon_left), np.int64(q[root].abandon_right)
    return merge(heap, left, right, q)


@compiled
def take_slot(i: Int, q: Records, e: Records, slots: Records) -> Int:
    """A free slot for request i, at the end of the running list."""
    s = e.free_slot
    e.free_slot = slots[s].after
    slots[s].request = i
    slots[s].ticket = e.tickets
    e.tickets += 1
    slots[s].before = e.last_slot
    slots[s].after = -1
    if e.last_slot < 0:
        e.first_slot = s
    else:
        slots[e.last_slot].after = s
    e.last_slot = s
    e.n_running += 1
    q[i].slot = s
    return np.int64(s)


@compiled
def give_slot(s: Int, q: Records, e: Records, slots: Records) -> None:
    """Its request runs no longer."""
    q[slots[s].request].slot = -1
    before, after = slots[s].before, slots[s].after
    if before < 0:
        e.first_slot = after
    else:
        slots[before].after = after
    if after < 0:
        e.last_slot = before
    else:
        slots[after].before = before
    slots[s].after = e.free_slot
    e.free_slot = s
    e.n_running -= 1


@compiled
def link_finish(s: Int, at: Int, slots: Records, finish: Int32Array) -> None:
    head = finish[at]
    slots[s].finish_before = -1
    slots[s].finish_after = head
    if head >= 0:
        slots[head].finish_before = s
    finish[at] = s


@compiled
def unlink_finish(s: Int, at: Int, slots: Records, finish: Int32Array) -> None:
    before, after = slots[s].finish_before, slots[s].finish_after
    if before < 0:
        finish[at] = after
    else:
        slots[before].finish_after = after
    if after >= 0:
        slots[after].finish_before = before
