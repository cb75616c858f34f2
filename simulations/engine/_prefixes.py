"""Which blocks of a slot can be found by other requests, in compiled code."""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import find, list_block, next_key
from simulations.engine._compiler import compiled
from simulations.engine._state import Int, Int32Array, Limits, View


@compiled
def shareable(i: Int, cached: Int, shared: Int32Array, size: Int) -> Int:
    """Of so many cached blocks, those that another request may look for."""
    if len(shared) == 0:
        return 0
    return np.int64(min(cached, shared[i] // size))


@compiled
def list_blocks(s: Int, count: Int, st: View, limits: Limits) -> None:
    """The first `count` blocks of a slot can be found."""
    slot = st.slots[s]
    first = slot.listed
    if first >= count:
        return
    key = np.uint64(0)
    at = before = np.int64(0)
    if first > 0:
        key = st.blocks[st.table[s, first - 1]].key
    i, size = np.int64(slot.request), limits.block_size
    for k in range(first, count):
        key, at, before = next_key(key, at, before, i, k * size, size, st.requests, st.content)
        st.table[s, k] = list_block(key, st.blocks, st.lookup)
    slot.listed = count


@compiled
def hits_of(i: Int, s: Int, st: View, limits: Limits) -> Int:
    """The longest cached beginning of a request, into the table of a slot: how many blocks.

    The last token is always computed.
    """
    q = st.requests
    most = (q[i].prompt + q[i].out - 1) // limits.block_size
    if st.outcomes.preemptions[i] == 0:
        most = shareable(i, most, st.content.shared, limits.block_size)
    key = np.uint64(0)
    at = before = np.int64(0)
    size = limits.block_size
    for k in range(most):
        key, at, before = next_key(key, at, before, i, k * size, size, q, st.content)
        b = find(key, st.blocks, st.lookup)
        if b == 0:
            return k
        st.table[s, k] = b
    return np.int64(most)
