"""The gateway's routing over all replicas, between two control events, in compiled code.

Least outstanding requests over the serving replicas; of equals, the one after the last chosen.
Requests that find no serving replica wait at the gateway in order of arrival.

Ties: a control event at t comes before an arrival at t; a request that ends exactly when another
arrives has left.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._lists import COMING_HEAP, without_root
from simulations.engine._replica import advance
from simulations.engine._scheduler import enqueue
from simulations.engine._state import (
    NEVER,
    Int,
    IntArray,
    Limits,
    Records,
    Speed,
    State,
    compiled,
    entry,
    view,
)

ARRIVED, CHOSEN, HEAD, TAIL = range(4)
"""Cursor: requests of the schedule so far, the position chosen last, and the ends of the list of
those that wait at the gateway (-1: none)."""
AT_GATEWAY = 4
"""Cursor: how many wait there."""


@compiled
def _hold(i: Int, cursor: IntArray, q: Records) -> None:
    """Request i waits at the gateway."""
    q[i].left = -1
    if cursor[TAIL] < 0:
        cursor[HEAD] = i
    else:
        q[cursor[TAIL]].left = i
    cursor[TAIL] = i
    cursor[AT_GATEWAY] += 1


@compiled
def _least(serving: IntArray, at_s: float, cursor: IntArray, e: Records) -> Int:
    """The position with the fewest outstanding requests, or -1 - the row of one to move on first."""
    n = len(serving)
    best = np.int64(0)
    fewest = np.iinfo(np.int32).max
    position = cursor[CHOSEN]
    for _ in range(n):
        position += 1
        if position >= n:
            position = 0
        replica = e[serving[position]]
        if replica.quiet_until_s <= at_s:
            return np.int64(-1 - serving[position])
        if replica.outstanding < fewest:
            best = position
            fewest = replica.outstanding
    return np.int64(best)


@compiled
def _earliest(t_s: float, alive: IntArray, e: Records) -> tuple[Int, float]:
    """The row in which a request may end first, if before t; and until when no other's may.

    It must not be moved on any further: what another sends would come too late.
    """
    first = np.int64(-1)
    quiet_s = t_s
    second_s = t_s
    for position in range(len(alive)):
        replica_s = e[alive[position]].quiet_until_s
        if replica_s < quiet_s:
            second_s = quiet_s
            quiet_s = replica_s
            first = alive[position]
        else:
            second_s = min(second_s, replica_s)
    return first, max(second_s, quiet_s)


@entry
def run_until(
    now_s: float,
    until_s: float,
    n_open: Int,
    serving: IntArray,
    alive: IntArray,
    cursor: IntArray,
    after: IntArray,
    state: State,
    speed: Speed,
    limits: Limits,
) -> None:
    """Route all that arrives in [now, until) and bring every replica to `until`.

    Args:    n_open: the first so many requests of the schedule have a time of their own.
             serving: rows of the replicas that take new requests.
             alive: rows of all replicas that may hold requests, draining ones too.
             cursor: (5,), see ARRIVED.
             after: (n,) the turn before; requests that have one are sent when it is answered. ().
    """
    e, q = state.replicas, state.requests
    coming = state.follow.coming
    follows = len(state.follow.turn) > 0 or state.follow.closed[0] < state.follow.closed[1]
    done = 0
    fresh = False
    while True:
        # Who is sent next: somebody at the gateway, of the schedule, or whom an end has sent.
        while cursor[ARRIVED] < n_open and len(after) > 0 and after[cursor[ARRIVED]] >= 0:
            cursor[ARRIVED] += 1
        i = cursor[ARRIVED]
        next_s = q[i].sent_s if i < n_open else NEVER
        held = cursor[HEAD] >= 0 and len(serving) > 0
        sent = not held and coming[0] >= 0 and q[coming[0]].sent_s < next_s
        if held:
            i = cursor[HEAD]
            next_s = now_s
        elif sent:
            i = np.int64(coming[0])
            next_s = q[i].sent_s
        # Who has to be moved on before that, and how far.
        t_s = min(next_s, until_s)
        row: Int = np.int64(-1)
        if follows and not held:
            row, t_s = _earliest(t_s, alive, e)
        position: Int = np.int64(0)
        if row < 0 and next_s < until_s and len(serving) > 0:
            position = _least(serving, next_s, cursor, e)
            if position < 0:
                row = -1 - position
            elif limits.max_queued_tokens >= 0 and not fresh:
                row = serving[position]
                fresh = True
            t_s = next_s
        if row < 0 and next_s >= until_s:
            if done == len(alive):
                break
            row = alive[done]
            t_s = until_s
            done += 1
        if row >= 0:
            advance(t_s, view(row, state), speed, limits)
            continue
        fresh = False
        if held:
            cursor[HEAD] = q[i].left
            cursor[AT_GATEWAY] -= 1
            if cursor[HEAD] < 0:
                cursor[TAIL] = -1
        elif sent:
            coming[0] = without_root(COMING_HEAP, i, q)
        else:
            cursor[ARRIVED] += 1
        if len(serving) == 0:
            _hold(i, cursor, q)
            continue
        cursor[CHOSEN] = position
        enqueue(i, next_s, view(serving[position], state), limits)
