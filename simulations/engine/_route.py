"""The gateway over all replicas, between two control events, in compiled code.

Requests that find no replica in service wait at the gateway in order of arrival.

Ties: a control event at t comes before an arrival at t; a request that ends exactly when another
arrives has left.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._address import by_address
from simulations.engine._balance import NO_ROOM, choose
from simulations.engine._blocks import uniform
from simulations.engine._clients import gives_up_s, over
from simulations.engine._compiler import compiled, entry
from simulations.engine._leaving import lose
from simulations.engine._lists import COMING_HEAP, without_root
from simulations.engine._queue import enqueue
from simulations.engine._replica import advance
from simulations.engine._results import answered
from simulations.engine._state import (
    ABORTED,
    CACHED,
    NEVER,
    NO,
    REJECTED,
    YES,
    Gate,
    Int,
    IntArray,
    Limits,
    Records,
    Speed,
    State,
    view,
)

ARRIVED, CHOSEN, CHOSEN_CANARY, HEAD, TAIL, AT_GATEWAY, REFUSED, HITS = range(8)
"""Cursor: requests of the schedule so far, the positions chosen last, the ends of the list of those
that wait at the gateway (-1: none) and how many they are, how many it refused, and how many it
answered itself."""


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
def _unhold(cursor: IntArray, q: Records) -> None:
    """The first of those that wait at the gateway does so no longer."""
    cursor[HEAD] = q[cursor[HEAD]].left
    cursor[AT_GATEWAY] -= 1
    if cursor[HEAD] < 0:
        cursor[TAIL] = -1


@compiled
def _earliest(t_s: float, alive: IntArray, e: Records) -> tuple[Int, float]:
    """The row because of which somebody may be sent first, if before t; and until when no other's.

    It must not be moved on any further: what another sends would come too late.
    """
    first = np.int64(-1)
    quiet_s = t_s
    second_s = t_s
    for position in range(len(alive)):
        replica_s = e[alive[position]].follow_s
        if replica_s < quiet_s:
            second_s = quiet_s
            quiet_s = replica_s
            first = alive[position]
        else:
            second_s = min(second_s, replica_s)
    return first, max(second_s, quiet_s)


@compiled
def _any_behind(at_s: float, alive: IntArray, e: Records) -> Int:
    """A row in which an answer may have been given by now, -1 for none."""
    for position in range(len(alive)):
        if e[alive[position]].quiet_until_s <= at_s:
            return alive[position]
    return np.int64(-1)


@compiled
def _to_canary(i: Int, share: float, gate: Gate) -> bool:
    """Whether the conversation of request i is among the share that a canary gets."""
    who = np.int64(i)
    if len(gate.conversation) > 0:
        who = np.int64(gate.conversation[i])
    return uniform(gate.seed, who, np.int64(0)) < share


@compiled
def _end(i: Int, status: Int, at_s: float, answer: bool, state: State) -> None:
    """Request i ends at the gateway."""
    q = state.requests
    q[i].status = status
    q[i].attempts += 1
    over(i, at_s, answer, state.follow, q, state.gate)


@entry
def run_until(
    now_s: float,
    until_s: float,
    n_open: Int,
    serving: IntArray,
    canary: IntArray,
    canary_share: float,
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
             canary: rows that take the share of conversations instead; () for none.
             alive: rows of all replicas that may hold requests, draining ones too.
             cursor: (8,), see ARRIVED.
             after: (n,) the turn before; requests that have one are sent when it is answered. ().
    """
    state, speed, limits = by_address(state), by_address(speed), by_address(limits)
    e, q, gate, outcomes = state.replicas, state.requests, state.gate, state.outcomes
    coming = state.follow.coming
    follows = len(state.follow.turn) > 0 or state.follow.closed[0] < state.follow.closed[1]
    follows = follows or gate.retries > 0
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
        rows, last = serving, CHOSEN
        asks = row < 0 and next_s < until_s and gate.cache_size > 0 and gate.key[i] >= 0
        if asks:
            row = _any_behind(next_s, alive, e)
            t_s = next_s
        hit = asks and row < 0 and answered(np.int64(gate.key[i]), next_s, gate)
        gone = held and gives_up_s(i, q, gate) <= now_s
        if row < 0 and next_s < until_s and len(serving) > 0 and not (hit or gone):
            if len(canary) > 0 and _to_canary(i, canary_share, gate):
                rows, last = canary, CHOSEN_CANARY
            position = choose(i, rows, next_s, cursor[last], gate, e)
            if position < NO_ROOM:
                row = -2 - position
            elif limits.max_queued_tokens >= 0 and position >= 0 and not fresh:
                row = rows[position]
                fresh = True
            t_s = next_s
        if row < 0 and next_s >= until_s:
            if done == len(alive):
                break
            row = alive[done]
            t_s = until_s
            done += 1
        if row >= 0:
            advance(t_s, by_address(view(row, state)), speed, limits)
            continue
        fresh = False
        if held:
            _unhold(cursor, q)
        elif sent:
            coming[0] = without_root(COMING_HEAP, i, q)
        else:
            cursor[ARRIVED] += 1
        if hit:
            cursor[HITS] += 1
            outcomes.first_s[i] = next_s + gate.cache_s + limits.response_s
            outcomes.end_s[i] = outcomes.first_s[i]
            _end(i, np.int64(CACHED), outcomes.end_s[i], YES, state)
        elif gone:
            _end(i, np.int64(ABORTED), now_s, NO, state)
        elif len(serving) == 0:
            _hold(i, cursor, q)
        elif position == NO_ROOM:
            cursor[REFUSED] += 1
            _end(i, np.int64(REJECTED), next_s, NO, state)
        else:
            cursor[last] = position
            enqueue(i, next_s, by_address(view(rows[position], state)), limits)


@entry
def crash(row: Int, now_s: float, state: State, limits: Limits) -> None:
    """The replica of a row dies with all that it holds."""
    lose(now_s, by_address(view(row, by_address(state))), by_address(limits))
