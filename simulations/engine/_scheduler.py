"""vLLM V1's scheduler in compiled code: what one step holds, and what it leaves behind.

`begin` is vLLM's `schedule`, `complete` its `update_from_output`; reference.py says the same in plain
Python. What makes it fast: sequences that only decode all gain a token in a round, so that none of
them is touched. Their tokens follow from the number of rounds, their ends and their next blocks
stand in lists by round. Only where blocks or budget run short does a step walk the running list.

Ties: a request that arrives exactly when a step is decided can be in it; of requests that arrive
together the one with the lower index is first; a client that gives up when a step ends gets nothing
of it.

Source:  vllm/v1/core/sched/scheduler.py and async_scheduler.py, 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import (
    find,
    list_block,
    mixed,
    next_key,
    release,
    take_blocks,
    touch_block,
    uniform,
)
from simulations.engine._compiler import compiled
from simulations.engine._lists import (
    ABANDON_HEAP,
    COMING_HEAP,
    WAITING_HEAP,
    give_slot,
    link_finish,
    push,
    take_slot,
    unlink_finish,
    without_root,
)
from simulations.engine._results import store
from simulations.engine._state import (
    ABORTED,
    COMING,
    DECODE,
    DONE,
    DRAINING,
    E2E,
    FAILED,
    INBOX,
    NO,
    PREFILL,
    QUEUE,
    REJECTED,
    RUNNING,
    STALLED,
    TPOT,
    TTFT,
    WAITING,
    YES,
    Follow,
    Gate,
    Int,
    Limits,
    Records,
    Speed,
    View,
)


@compiled
def _blocks_of(tokens: Int, limits: Limits) -> Int:
    return (tokens + limits.block_size - 1) // limits.block_size


# -- requests come and go ------------------------------------------------------------------------


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
def _leaves_s(i: Int, q: Records, gate: Gate) -> float:
    """When the user of request i is out of patience."""
    if len(gate.patience_s) == 0:
        return np.inf
    first_s = q[i].sent_s
    if len(gate.asked_s) > 0 and not np.isnan(gate.asked_s[i]):
        first_s = gate.asked_s[i]
    return float(first_s + gate.patience_s[i])


@compiled
def gives_up_s(i: Int, q: Records, gate: Gate) -> float:
    """When the attempt that was sent last is given up."""
    return float(min(q[i].sent_s + gate.timeout_s, _leaves_s(i, q, gate)))


@compiled
def again_s(i: Int, at_s: float, q: Records, gate: Gate) -> float:
    """When request i would be sent again if it came to nothing now; inf: never."""
    request = q[i]
    if request.attempts > gate.retries:
        return np.inf
    pause_s = min(gate.backoff_s * 2.0 ** (request.attempts - 1), gate.longest_backoff_s)
    next_s = at_s + pause_s * (1 - gate.jitter * uniform(gate.seed, i, np.int64(-request.attempts)))
    return float(next_s) if next_s < _leaves_s(i, q, gate) else np.inf


@compiled
def _send_again(i: Int, next_s: float, follow: Follow, q: Records, gate: Gate) -> None:
    """As if nothing had happened."""
    request = q[i]
    if np.isnan(gate.asked_s[i]):
        gate.asked_s[i] = request.sent_s
    request.sent_s = next_s
    request.status = COMING
    request.first_s = np.nan
    request.out = 0
    request.computed = 0
    follow.coming[0] = push(COMING_HEAP, follow.coming[0], np.int64(i), q)


@compiled
def over(i: Int, at_s: float, answered: bool, follow: Follow, q: Records, gate: Gate) -> None:
    """Nothing more happens to request i, unless it is sent again; whoever waited for it is sent.

    Args:    at_s: when its client knows.
    """
    if not answered:
        next_s = again_s(i, at_s, q, gate)
        if next_s < np.inf:
            _send_again(i, next_s, follow, q, gate)
            return
    if follow.closed[0] < follow.closed[1]:
        j = follow.closed[0]
        follow.closed[0] += 1
        q[j].sent_s = at_s
        follow.coming[0] = push(COMING_HEAP, follow.coming[0], j, q)
    if answered and len(follow.turn) > 0 and follow.turn[i] >= 0:
        j = follow.turn[i]
        q[j].sent_s = at_s + follow.think_s[j]
        follow.coming[0] = push(COMING_HEAP, follow.coming[0], j, q)


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
            _wait(i, NO, st, limits)


@compiled
def _wait(i: Int, front: bool, st: View, limits: Limits) -> None:
    e, q = st.row[0], st.requests
    e.n_waiting += 1
    if limits.priority:
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
def _pop_waiting(st: View, limits: Limits) -> None:
    e, q = st.row[0], st.requests
    if limits.priority:
        e.waiting_head = without_root(WAITING_HEAP, e.waiting_head, q)
        return
    e.waiting_head = q[e.waiting_head].left
    if e.waiting_head < 0:
        e.waiting_tail = -1


@compiled
def _first_waiting(st: View, limits: Limits) -> Int:
    """The request at the head of the queue, -1 for none; those that have left it are dropped."""
    e, q = st.row[0], st.requests
    while e.waiting_head >= 0 and q[e.waiting_head].status != WAITING:
        _pop_waiting(st, limits)
    return np.int64(e.waiting_head)


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
            _stop(np.int64(request.slot), e.updated, NO, st, limits)
        if again_s(i, now_s, q, st.gate) < np.inf:
            _withdraw(i, status, st, limits)
        request.status = ABORTED
        e.outstanding -= 1
        e.aborted += 1
        if np.isnan(request.first_s):
            e.unanswered_tokens -= request.prompt
        over(i, now_s, NO, st.follow, q, st.gate)


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
            _pop_waiting(st, limits)
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
    i = np.int64(_first_waiting(st, limits))
    while i >= 0:
        _pop_waiting(st, limits)
        _fail(i, now_s, st)
        i = np.int64(_first_waiting(st, limits))
    s = np.int64(e.first_slot)
    while s >= 0:
        _fail(np.int64(st.slots[s].request), now_s, st)
        s = np.int64(st.slots[s].after)


@compiled
def _fail(i: Int, now_s: float, st: View) -> None:
    st.row[0].failed += 1
    st.requests[i].status = FAILED
    over(i, now_s, NO, st.follow, st.requests, st.gate)


# -- slots ---------------------------------------------------------------------------------------


@compiled
def _out(slot: Records, st: View) -> Int:
    """Output tokens that steps so far bring."""
    if slot.kind == DECODE:
        return np.int64(slot.base + st.row[0].rounds)
    return np.int64(st.requests[slot.request].out)


@compiled
def _held(slot: Records, st: View) -> Int:
    """Tokens in the KV cache with the steps so far."""
    request = st.requests[slot.request]
    if slot.kind == PREFILL:
        return np.int64(request.computed)
    return np.int64(request.prompt + _out(slot, st) - 1)


@compiled
def _decode(s: Int, since: Int, st: View, limits: Limits) -> None:
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
def _undecode(s: Int, st: View, limits: Limits) -> None:
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
def _brought(slot: Records, step: Int, st: View) -> bool:
    """Whether a step brought it a token, of those since its last gap."""
    if slot.kind == DRAINING and step > slot.last:
        return False
    return bool(slot.since <= step <= st.row[0].step)


@compiled
def _cached_tokens(slot: Records, updated: Int, st: View, limits: Limits) -> Int:
    """Tokens whose full blocks vLLM has marked as cached, when the slot is given up.

    A step marks what it computes as far as the tokens are known: with asynchronous scheduling those
    of the step in flight are not, and are marked when it comes back.

    Args:    updated: the last step that has come back.
    """
    if slot.kind == PREFILL or limits.depth == 1:
        return np.int64(_held(slot, st) + slot.tokens)
    e, prompt = st.row[0], st.requests[slot.request].prompt
    out = _out(slot, st)
    delivered = out
    for step in range(updated + 1, e.step + 1):
        delivered -= _brought(slot, step, st)
    best = max(slot.cached, prompt + delivered - 1)
    last = slot.last if slot.kind == DRAINING else e.step
    if _brought(slot, last, st):
        known = out - 1
        if st.flights[last % 2].overlap > 0 and _brought(slot, last - 1, st):
            known -= 1
        best = max(best, prompt + known)
    if slot.tokens > 0:
        best = max(best, prompt + delivered)
    return np.int64(best)


@compiled
def _stop(s: Int, updated: Int, again: bool, st: View, limits: Limits) -> None:
    """Its request leaves the running list and gives its blocks back.

    Args:    again: it will come back and look for them.
    """
    e, slot = st.row[0], st.slots[s]
    count = _blocks_of(_held(slot, st) + slot.tokens, limits)
    if limits.caching:
        cached = _cached_tokens(slot, updated, st, limits) // limits.block_size
        findable = cached
        if not again:
            findable = _shareable(slot.request, cached, st, limits)
        _list(s, findable, st, limits)
        e.free_blocks += release(s, slot.listed, cached, count, st.table, st.blocks)
    else:
        e.free_blocks += count
    if slot.kind == DECODE:
        _undecode(s, st, limits)
    elif slot.kind == PREFILL:
        e.n_prefill -= 1
    slot.tokens = 0
    give_slot(s, st.requests, e, st.slots)


# -- blocks of slots -----------------------------------------------------------------------------


@compiled
def _shareable(i: Int, cached: Int, st: View, limits: Limits) -> Int:
    """Of so many cached blocks, those that another request may look for."""
    if len(st.content.shared) == 0:
        return 0
    return np.int64(min(cached, st.content.shared[i] // limits.block_size))


@compiled
def _list(s: Int, count: Int, st: View, limits: Limits) -> None:
    """The first `count` blocks of a slot can be found."""
    slot = st.slots[s]
    first = slot.listed
    if first >= count:
        return
    key = np.uint64(0)
    at = np.int64(0)
    if first > 0:
        key = st.blocks[st.table[s, first - 1]].key
    size = limits.block_size
    for k in range(first, count):
        key, at = next_key(key, at, slot.request, k * size, size, st.requests, st.content)
        st.table[s, k] = list_block(key, st.blocks, st.lookup)
    slot.listed = count


@compiled
def _hits(i: Int, s: Int, st: View, limits: Limits) -> Int:
    """The longest cached beginning of a request, into the table of a slot: how many blocks.

    The last token is always computed.
    """
    q = st.requests
    most = (q[i].prompt + q[i].out - 1) // limits.block_size
    if q[i].preemptions == 0:
        most = _shareable(i, most, st, limits)
    key = np.uint64(0)
    at = np.int64(0)
    for k in range(most):
        key, at = next_key(key, at, i, k * limits.block_size, limits.block_size, q, st.content)
        b = find(key, st.blocks, st.lookup)
        if b == 0:
            return k
        st.table[s, k] = b
    return np.int64(most)


@compiled
def _grow(s: Int, tokens: Int, st: View, limits: Limits) -> None:
    """Blocks for so many more tokens of a slot; there are enough. The full ones are cached."""
    slot = st.slots[s]
    held = _held(slot, st)
    have = _blocks_of(held, limits)
    need = _blocks_of(held + tokens, limits)
    st.row[0].free_blocks -= need - have
    if limits.caching:
        take_blocks(need - have, st.blocks, st.lookup)
        _list_prefill(s, tokens, st, limits)


@compiled
def _list_prefill(s: Int, tokens: Int, st: View, limits: Limits) -> None:
    """Blocks of a prompt can be found as soon as a step fills them; those of an answer only when
    its request is over.
    """
    slot = st.slots[s]
    if slot.kind == PREFILL:
        full = (_held(slot, st) + tokens) // limits.block_size
        _list(s, _shareable(slot.request, full, st, limits), st, limits)


# -- one step ------------------------------------------------------------------------------------


@compiled
def _cap(st: View, limits: Limits) -> Int:
    """The most tokens of one request in this step, 0 for no limit."""
    e = st.row[0]
    if limits.lone_uncapped and e.n_running + e.n_waiting <= 1:
        return 0
    return limits.cap


@compiled
def _wanted(slot: Records, cap: Int, st: View) -> Int:
    """Tokens that a running slot would have in this step, were there budget enough."""
    if slot.kind == DRAINING:
        return 0
    if slot.kind != PREFILL:
        return 1
    request = st.requests[slot.request]
    tokens = request.prompt + request.out - request.computed
    return np.int64(min(tokens, cap)) if cap > 0 else int(tokens)


@compiled
def _plan(cap: Int, st: View, limits: Limits) -> Int:
    """Tokens and blocks for all that run, where there are enough for every decode.

    Returns: tokens left of the budget, or -1 where the running list must be walked.
    """
    e, slots = st.row[0], st.slots
    left = limits.max_step_tokens - e.n_decode
    need = st.phase_count[e.rounds % limits.block_size]
    count = 0
    decode_behind = False
    s = e.last_slot
    while count < e.n_prefill:  # the youngest, or nearly
        if slots[s].kind == PREFILL:
            st.order[count] = s
            count += 1
        elif slots[s].kind == DECODE:
            decode_behind = True
        s = slots[s].before
    for k in range(count - 1, -1, -1):  # the oldest first
        slot = slots[st.order[k]]
        tokens = _wanted(slot, cap, st)
        if tokens > left and decode_behind:
            return -1
        tokens = min(tokens, left)
        slot.tokens = tokens
        left -= tokens
        held = _held(slot, st)
        need += _blocks_of(held + tokens, limits) - _blocks_of(held, limits)
    if need > e.free_blocks:
        return -1
    e.free_blocks -= need
    if limits.caching:
        take_blocks(np.int64(need), st.blocks, st.lookup)
        for k in range(count - 1, -1, -1):
            _list_prefill(np.int64(st.order[k]), np.int64(slots[st.order[k]].tokens), st, limits)
    return np.int64(left)


@compiled
def _victim(st: View, limits: Limits) -> Int:
    """Who is preempted: the youngest, or of the lowest priority the latest to arrive."""
    e, q, slots = st.row[0], st.requests, st.slots
    if not limits.priority:
        return np.int64(e.last_slot)
    worst = e.first_slot
    s = slots[worst].after
    while s >= 0:
        a, b = q[slots[s].request], q[slots[worst].request]
        later = a.priority == b.priority and a.sent_s > b.sent_s
        if a.priority > b.priority or later:
            worst = s
        s = slots[s].after
    return np.int64(worst)


@compiled
def _walk(cap: Int, st: View, limits: Limits) -> Int:
    """Serve the running list in order, with preemption: tokens left, -1 after a preemption."""
    e, q, slots = st.row[0], st.requests, st.slots
    s = np.int64(e.first_slot)
    while s >= 0:
        slot = slots[s]
        slot.tokens = 0
        if slot.kind == DECODE:
            _undecode(s, st, limits)
            slot.kind = STALLED
        s = np.int64(slot.after)
    left = np.int64(limits.max_step_tokens)
    preempted = False
    s = np.int64(e.first_slot)
    while s >= 0 and left > 0:
        slot = slots[s]
        tokens = min(_wanted(slot, cap, st), left)
        if tokens == 0:
            s = np.int64(slot.after)
            continue
        held = _held(slot, st)
        need = _blocks_of(held + tokens, limits) - _blocks_of(held, limits)
        gone = False
        skipped = 0
        following = np.int64(-1)
        while need > e.free_blocks and not gone:
            victim = _victim(st, limits)
            gone = victim == s
            following = np.int64(slot.after)
            if slots[victim].ticket < slot.ticket and slots[victim].tokens == 0:
                skipped += limits.victim_skips
            left += slots[victim].tokens
            i = np.int64(slots[victim].request)
            _stop(victim, e.updated, YES, st, limits)
            q[i].status = WAITING
            q[i].computed = 0
            q[i].preemptions += 1
            _wait(i, YES, st, limits)
            e.preemptions += 1
            preempted = True
        if gone and limits.self_ends:
            break
        if not gone:
            _grow(s, tokens, st, limits)
            slot.tokens = tokens
            left -= tokens
            following = np.int64(slot.after)
        for _ in range(skipped):
            if following >= 0:
                following = np.int64(slots[following].after)
        s = following
    return -1 if preempted else int(left)


@compiled
def _admit(now_s: float, left: Int, cap: Int, st: View, limits: Limits) -> Int:
    """Serve the queue while budget, slots and blocks last: tokens left."""
    e, q, slots = st.row[0], st.requests, st.slots
    size = limits.block_size
    while left > 0 and e.n_running < limits.max_seqs:
        i = _first_waiting(st, limits)
        if i < 0:
            break
        request = q[i]
        total = request.prompt + request.out
        hits = 0
        if limits.caching:
            hits = _hits(i, e.free_slot, st, limits)
        tokens = total - hits * size
        if 0 < cap < tokens:
            tokens = cap
        if not limits.chunked and tokens > left:
            break
        tokens = min(tokens, left)
        until = total if limits.reserve_whole else hits * size + tokens
        need = _blocks_of(until, limits) - hits
        if e.n_running > 0:
            need += limits.watermark
        idle = 0
        for k in range(hits):
            idle += st.blocks[st.table[e.free_slot, k]].held == 0
        if need + idle > e.free_blocks:
            break
        s = take_slot(i, q, e, slots)
        _pop_waiting(st, limits)
        e.n_waiting -= 1
        e.n_prefill += 1
        request.status = RUNNING
        if np.isnan(request.first_s) and request.preemptions == 0:
            request.waited_s = now_s - request.queued_s
        request.computed = hits * size
        request.hit_tokens += hits * size
        e.hit_tokens += hits * size
        slot = slots[s]
        slot.kind = PREFILL
        slot.listed = hits
        for k in range(hits):
            touch_block(st.table[s, k], st.blocks)
        e.free_blocks -= idle
        _grow(s, tokens, st, limits)
        slot.tokens = tokens
        left -= tokens
    return np.int64(left)


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
    left = _plan(cap, st, limits)
    walked = left < 0
    if walked:
        left = _walk(cap, st, limits)
    if left > 0:
        left = _admit(now_s, left, cap, st, limits)
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
            held = _held(slot, st)
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
                _undecode(s, st, limits)
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
            request.computed += tokens
            slot.cached = request.computed
            if tokens == 0 or request.computed < request.prompt + request.out:
                continue
            e.n_prefill -= 1
            request.out += 1
            e.generation_tokens += 1
            first = np.isnan(request.first_s)
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
        _decode(here, since, st, limits)


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


@compiled
def _observe(histogram: Int, value_s: float, st: View) -> None:
    edges = st.gate.edges
    if len(edges) == 0:
        return
    k = 0
    while k < edges.shape[1] and value_s > edges[histogram, k]:
        k += 1
    st.counts[histogram, k] += 1


@compiled
def _count(i: Int, now_s: float, st: View, limits: Limits) -> None:
    """What a finished request adds to the metrics, and its answer to the gateway's cache."""
    e, request, gate = st.row[0], st.requests[i], st.gate
    e.finished += 1
    e2e_s = now_s - request.queued_s + limits.overhead_s
    tpot_s = 0.0
    if request.output > 1:
        tpot_s = (request.end_s - request.first_s) / (request.output - 1)
    e.e2e_sum_s += e2e_s
    e.tpot_sum_s += tpot_s
    e.queue_sum_s += request.waited_s
    _observe(E2E, e2e_s, st)
    _observe(TPOT, tpot_s, st)
    _observe(QUEUE, np.float64(request.waited_s), st)
    if gate.cache_size > 0 and gate.key[i] >= 0:
        store(np.int64(gate.key[i]), now_s, gate)


@compiled
def complete(st: View, limits: Limits) -> None:
    """The oldest step in flight takes effect: first tokens, and requests that end."""
    e = st.row[0]
    step = e.updated + 1
    flight = st.flights[step % 2]
    row = st.news[step % 2]
    now_s = flight.end_s
    seen_s = now_s + limits.response_s + limits.response_seq_s * flight.seqs
    e.busy_s += flight.busy_s
    e.active_s += now_s - flight.start_s
    e.updated = step
    for k in range(flight.count):
        i = np.int64(row[k] // 2)
        request = st.requests[i]
        if request.status != RUNNING and request.status != WAITING:
            continue
        if np.isnan(request.first_s):
            request.first_s = seen_s
            ttft_s = now_s - request.queued_s + limits.overhead_s
            e.ttft_sum_s += ttft_s
            e.ttft_count += 1
            e.prompt_tokens += request.prompt
            _observe(TTFT, ttft_s, st)
            e.unanswered_tokens -= request.prompt
        if row[k] % 2 == 0:
            continue
        if request.status == RUNNING:
            _stop(np.int64(request.slot), step, NO, st, limits)
        else:  # preempted with its last token in flight
            e.n_waiting -= 1
        request.status = DONE
        request.end_s = seen_s
        e.outstanding -= 1
        _count(i, now_s, st, limits)
        over(i, seen_s, YES, st.follow, st.requests, st.gate)
