"""KV blocks with prefix caching in compiled code: vLLM's free queue, and what can be found.

A block that no other request can have need not be found, except by its own request after a
preemption: only then, and where prompts share segments, does it get a key and a node of its own.
All others are alike and only counted: in the free queue, those between two nodes are one run. So a
request costs what it shares, not what it holds. Keys are 64 bits of a chain over (segment, offset,
tokens); of a pool of 10^6 blocks one lookup in 10^13 would err.

Source:  vllm/v1/core/block_pool.py and kv_cache_utils.py (FreeKVCacheBlockQueue), 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._compiler import compiled
from simulations.engine._state import Content, Int, Int32Array, Records

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
def uniform(seed: Int, a: Int, b: Int) -> float:
    """A number in [0, 1) that belongs to (seed, a, b)."""
    drawn = mixed(mixed(np.uint64(seed), np.uint64(a)), np.uint64(b))
    return float(drawn >> np.uint64(11)) * 2.0**-53


@compiled
def next_key(
    h: Int, at: Int, first: Int, i: Int, start: Int, size: Int, q: Records, content: Content
) -> tuple[Int, Int, Int]:
    """Key of the block from token `start` on, after a chain h; and the segment in which it ends.

    Args:    at: a segment of request i at or before the block's first (0 from the beginning).
             first: tokens of the prompt before that segment.
    Returns: key, and `at` and `first` for the next block.
    """
    end = start + size
    known = len(content.first) > 0
    count = content.first[i + 1] - content.first[i] if known else 1
    until = 0
    while start < end:
        while at < count:
            until = first + (content.tokens[content.first[i] + at] if known else q[i].prompt)
            if until > start:
                break
            at += 1
            first = until
        if at < count:
            segment = content.segment[content.first[i] + at] if known else _OWN + i
            stop = min(end, until)
        else:
            segment, stop = -1 - i, end
        h = mixed(mixed(mixed(h, segment), start - first), stop - start)
        start = stop
    return h | np.uint64(1), at, first  # 0 means no key


@compiled
def _cell(key: Int, blocks: Records, lookup: Int32Array) -> Int:
    """Where a key is, or the empty cell where it would be."""
    mask = len(lookup) - 1
    at = np.int64(key & np.uint64(mask))
    while lookup[at] != 0 and blocks[lookup[at]].key != key:
        at = (at + 1) & mask
    return np.int64(at)


@compiled
def find(key: Int, blocks: Records, lookup: Int32Array) -> Int:
    """The oldest block of a key, 0 for none."""
    return np.int64(lookup[_cell(key, blocks, lookup)])


@compiled
def list_block(key: Int, blocks: Records, lookup: Int32Array) -> Int:
    """A node for a held block, which can be found from now on."""
    b = blocks[0].held
    blocks[0].held = blocks[b].after
    at = _cell(key, blocks, lookup)
    head = lookup[at]
    blocks[b].key = key
    blocks[b].twin = 0
    blocks[b].held = 1
    if head == 0:
        lookup[at] = b
        return np.int64(b)
    while blocks[head].twin != 0:
        head = blocks[head].twin
    blocks[head].twin = b
    return np.int64(b)


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
def _unlink(b: Int, blocks: Records) -> None:
    """Out of the free queue."""
    before, after = blocks[b].before, blocks[b].after
    blocks[before].after = after
    blocks[after].before = before


@compiled
def _insert(b: Int, before: Int, blocks: Records) -> None:
    """Into the free queue, behind `before`."""
    after = blocks[before].after
    blocks[b].before = before
    blocks[b].after = after
    blocks[before].after = b
    blocks[after].before = b


@compiled
def take_blocks(count: Int, blocks: Records, lookup: Int32Array) -> None:
    """The first so many of the free queue; what they hold is forgotten."""
    while count > 0:
        b = blocks[0].after
        if blocks[b].key == 0:
            taken = min(count, blocks[b].run)
            blocks[b].run -= taken
            count -= taken
            if blocks[b].run > 0:
                return
        else:
            _forget(b, blocks, lookup)
            count -= 1
        _unlink(b, blocks)
        blocks[b].after = blocks[0].held
        blocks[0].held = b


@compiled
def touch_block(b: Int, blocks: Records) -> None:
    """One more request holds it."""
    if blocks[b].held == 0:
        _unlink(b, blocks)
    blocks[b].held += 1


@compiled
def _add_run(count: Int, neighbour: Int, before: Int, blocks: Records) -> None:
    """So many blocks alike: to the run that is there, or as one of their own behind `before`."""
    if count <= 0:
        return
    if neighbour != 0 and blocks[neighbour].key == 0:
        blocks[neighbour].run += count
        return
    b = blocks[0].held
    blocks[0].held = blocks[b].after
    blocks[b].key = 0
    blocks[b].run = count
    _insert(b, before, blocks)


@compiled
def release(
    s: Int, listed: Int, cached: Int, count: Int, table: Int32Array, blocks: Records
) -> Int:
    """Give back the first `count` blocks of a slot, the last first; how many became free.

    The first `listed` of them have nodes; those from number `cached` on hold nothing to find and are
    taken again first.
    """
    first, last = np.int64(blocks[0].after), np.int64(blocks[0].before)
    cached = min(cached, count)
    _add_run(count - cached, first, np.int64(0), blocks)
    if last == 0:
        last = np.int64(blocks[0].before)
    _add_run(cached - listed, last, last, blocks)
    freed = count - listed
    for k in range(listed - 1, -1, -1):
        b = table[s, k]
        blocks[b].held -= 1
        if blocks[b].held == 0:
            _insert(b, np.int64(blocks[0].before), blocks)
            freed += 1
    return np.int64(freed)
