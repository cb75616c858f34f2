"""Running slots in compiled code: their tokens, their blocks, and how they are given up."""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import release, take_blocks
from simulations.engine._compiler import compiled
from simulations.engine._lists import give_slot, link_finish, unlink_finish
from simulations.engine._prefixes import list_blocks, shareable
from simulations.engine._state import DECODE, DRAINING, PREFILL, Int, Limits, Records, View


@compiled
def blocks_of(tokens: Int, size: Int) -> Int:
    return (tokens + size - 1) // size


@compiled
def _out(slot: Records, e: Records, q: Records) -> Int:
    """Output tokens that steps so far bring."""
    if slot.kind == DECODE:
        return np.int64(slot.base + e.rounds)
    return np.int64(q[slot.request].out)


@compiled
def held_by(slot: Records, e: Records, q: Records) -> Int:
    """Tokens in the KV cache with the steps so far."""
    if slot.kind == PREFILL:
        return np.int64(slot.cached)
    return np.int64(q[slot.request].prompt + _out(slot, e, q) - 1)


@compiled
def grow(s: Int, tokens: Int, st: View, limits: Limits) -> None:
    """Blocks for so many more tokens of a slot; there are enough. The full ones are cached."""
    slot = st.slots[s]
    held = held_by(slot, st.row[0], st.requests)
    have = blocks_of(held, limits.block_size)
    need = blocks_of(held + tokens, limits.block_size)
    st.row[0].free_blocks -= need - have
    if limits.caching:
        take_blocks(need - have, st.blocks, st.lookup)
        list_prefill(s, tokens, st, limits)


@compiled
def list_prefill(s: Int, tokens: Int, st: View, limits: Limits) -> None:
    """Blocks of a prompt can be found as soon as a step fills them; those of an answer only when
    its request is over.
    """
    slot = st.slots[s]
    if slot.kind == PREFILL:
        full = (held_by(slot, st.row[0], st.requests) + tokens) // limits.block_size
        list_blocks(
            s, shareable(slot.request, full, st.content.shared, limits.block_size), st, limits
        )


@compiled
def decode(s: Int, since: Int, st: View, limits: Limits) -> None:
    """From now on it gains a token with every round."""
    e, slot = st.row[0], st.slots[s]
    request = st.requests[slot.request]
    slot.kind = DECODE
    slot.base = request.out - e.rounds
    slot.since = since
    last = e.rounds + request.output - request.out
    link_finish(s, last % limits.ring, st.slots, st.finish)
    e.scanned = min(e.scanned, last - 1)
    e.n_decode += 1
    e.kv_tokens += request.prompt + request.out - 1
    phase = (1 - request.prompt - slot.base) % limits.block_size
    st.phase_count[phase] += 1


@compiled
def undecode(s: Int, st: View, limits: Limits) -> None:
    """Its tokens are counted by themselves again."""
    e, slot = st.row[0], st.slots[s]
    request = st.requests[slot.request]
    request.out = slot.base + e.rounds
    last = e.rounds + request.output - request.out
    unlink_finish(s, last % limits.ring, st.slots, st.finish)
    e.n_decode -= 1
    e.kv_tokens -= request.prompt + request.out - 1
    phase = (1 - request.prompt - slot.base) % limits.block_size
    st.phase_count[phase] -= 1


@compiled
def _brought(slot: Records, step: Int, e: Records) -> bool:
    """Whether a step brought it a token, of those since its last gap."""
    if slot.kind == DRAINING and step > slot.last:
        return False
    return bool(slot.since <= step <= e.step)


@compiled
def _cached_tokens(slot: Records, updated: Int, st: View, limits: Limits) -> Int:
    """Tokens whose full blocks vLLM has marked as cached, when the slot is given up.

    A step marks what it computes as far as the tokens are known: with asynchronous scheduling those
    of the step in flight are not, and are marked when it comes back.

    Args:    updated: the last step that has come back.
    """
    if slot.kind == PREFILL or limits.depth == 1:
        return np.int64(held_by(slot, st.row[0], st.requests) + slot.tokens)
    e, prompt = st.row[0], st.requests[slot.request].prompt
    out = _out(slot, st.row[0], st.requests)
    delivered = out
    for step in range(updated + 1, e.step + 1):
        delivered -= _brought(slot, step, e)
    best = max(slot.cached, prompt + delivered - 1)
    last = slot.last if slot.kind == DRAINING else e.step
    if _brought(slot, last, e):
        known = out - 1
        if st.flights[last % 2].overlap > 0 and _brought(slot, last - 1, e):
            known -= 1
        best = max(best, prompt + known)
    if slot.tokens > 0:
        best = max(best, prompt + delivered)
    return np.int64(best)


@compiled
def stop(s: Int, updated: Int, again: bool, st: View, limits: Limits) -> None:
    """Its request leaves the running list and gives its blocks back.

    Args:    again: it will come back and look for them.
    """
    e, slot = st.row[0], st.slots[s]
    count = blocks_of(held_by(slot, st.row[0], st.requests) + slot.tokens, limits.block_size)
    if limits.caching:
        cached = _cached_tokens(slot, updated, st, limits) // limits.block_size
        findable = cached
        if not again:
            findable = shareable(slot.request, cached, st.content.shared, limits.block_size)
        list_blocks(s, findable, st, limits)
        e.free_blocks += release(s, slot.listed, cached, count, st.table, st.blocks)
    else:
        e.free_blocks += count
    if slot.kind == DECODE:
        undecode(s, st, limits)
    elif slot.kind == PREFILL:
        e.n_prefill -= 1
    slot.tokens = 0
    give_slot(s, st.requests, e, st.slots)
