"""KV blocks with prefix caching in compiled code: vLLM's free queue, and what can be found.

A block that no other request can have need not be found, except by its own request after a
preemption: only then, and where prompts share segments, does it get a key. Keys are 64 bits of a
chain over (segment, offset, tokens); of a pool of 10^6 blocks one lookup in 10^13 would err.

Source:  vllm/v1/core/block_pool.py and kv_cache_utils.py (FreeKVCacheBlockQueue), 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._state import Content, Int, Int32Array, Records, compiled

_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xBF58476D1CE4E5B9)
_C = np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_OWN = 1 << 40
"""Segment ids of prompts that share nothing."""


@compiled
def mixed(h: Int, value: Int) -> Int:
    """SplitMix64's finaliser over a running hash (Steele, Lea and Flood 2014)."""
    z = (np.uint64(h) ^ np.uint64(value)) + _A
    z = (z ^ (z >> _30)) * _B
    z = (z ^ (z >> _27)) * _C
    return z ^ (z >> _31)


@compiled
def next_key(
    h: Int, at: Int, i: Int, start: Int, size: Int, q: Records, content: Content
) -> tuple[Int, Int]:
    """Key of the block from token `start` on, after a chain h; and where its segments end.

    Args:    at: a segment of request i at or before the block's first (0 from the beginning).
    """
    end = start + size
    known = len(content.first) > 0
    count = content.first[i + 1] - content.first[i] if known else 1
    until = 0
    while start < end:
        while at < count:
            until = content.end[content.first[i] + at] if known else q[i].prompt
            if until > start:
                break
            at += 1
        if at < count:
            segment = content.segment[content.first[i] + at] if known else _OWN + i
            first = 0
            if known and at > 0:
                first = content.end[content.first[i] + at - 1]
            stop = min(end, until)
        else:
            segment, first, stop = -1 - i, q[i].prompt, end
        h = mixed(mixed(mixed(h, segment), start - first), stop - start)
        start = stop
    return h | np.uint64(1), at  # 0 means no key


@compiled
def _cell(key: Int, blocks: Records, lookup: Int32Array) -> Int:
    """Where a key is, or the empty cell where it would be."""
    mask = len(lookup) - 1
    at = np.int64(key & np.uint64(mask))
    while lookup[at] != 0 and blocks[lookup[at]].key != key:
        at = (at + 1) & mask
    return int(at)


@compiled
def find(key: Int, blocks: Records, lookup: Int32Array) -> Int:
    """The oldest block of a key, 0 for none."""
    return int(lookup[_cell(key, blocks, lookup)])


@compiled
def list_block(b: Int, key: Int, blocks: Records, lookup: Int32Array) -> None:
    """From now on it can be found."""
    at = _cell(key, blocks, lookup)
    head = lookup[at]
    blocks[b].key = key
    blocks[b].twin = 0
    if head == 0:
        lookup[at] = b
        return
    while blocks[head].twin != 0:
        head = blocks[head].twin
    blocks[head].twin = b


@compiled
def _forget(b: Int, blocks: Records, lookup: Int32Array) -> None:
    """What it holds is overwritten."""
    key = blocks[b].key
    mask = len(lookup) - 1
    at = _cell(key, blocks, lookup)
    head = lookup[at]
    twin = blocks[b].twin
    blocks[b].key = 0
    blocks[b].twin = 0
    if head != b:
        while blocks[head].twin != b:
            head = blocks[head].twin
        blocks[head].twin = twin
        return
    if twin != 0:
        lookup[at] = twin
        return
    # Close the gap, so that what had to go on over this cell is still found.
    lookup[at] = 0
    nxt = (at + 1) & mask
    while lookup[nxt] != 0:
        home = np.int64(blocks[lookup[nxt]].key & np.uint64(mask))
        if ((nxt - home) & mask) >= ((nxt - at) & mask):
            lookup[at] = lookup[nxt]
            lookup[nxt] = 0
            at = nxt
        nxt = (nxt + 1) & mask


@compiled
def take_block(blocks: Records, lookup: Int32Array) -> Int:
    """The first of the free queue."""
    b = blocks[0].after
    after = blocks[b].after
    blocks[0].after = after
    blocks[after].before = 0
    if blocks[b].key != 0:
        _forget(b, blocks, lookup)
    blocks[b].held = 1
    return int(b)


@compiled
def touch_block(b: Int, blocks: Records) -> None:
    """One more request holds it."""
    if blocks[b].held == 0:
        before, after = blocks[b].before, blocks[b].after
        blocks[before].after = after
        blocks[after].before = before
    blocks[b].held += 1


@compiled
def _insert(b: Int, before: Int, blocks: Records) -> None:
    """Into the free queue, behind `before`."""
    after = blocks[before].after
    blocks[b].before = before
    blocks[b].after = after
    blocks[before].after = b
    blocks[after].before = b


@compiled
def release(s: Int, count: Int, cached: Int, table: Int32Array, blocks: Records) -> Int:
    """Give back the first `count` blocks of a slot, the last first; how many became free.

    Those from number `cached` on hold nothing to find.
    """
    freed = 0
    front = 0
    for k in range(count - 1, -1, -1):
        b = table[s, k]
        blocks[b].held -= 1
        if blocks[b].held > 0:
            continue
        freed += 1
        if k >= cached:
            _insert(b, front, blocks)
            front = b
        else:
            _insert(b, blocks[0].before, blocks)
    return freed
