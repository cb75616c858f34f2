"""Which replica takes a request, in compiled code.

A replica is looked at as it is at the time of the request: where one has to be moved on first, its
row is asked for instead.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import mixed
from simulations.engine._compiler import compiled
from simulations.engine._state import Gate, Int, IntArray, Records

LEAST, ROUND_ROBIN, TWO_CHOICES, PREFIX = range(4)
"""As gateway.BALANCING has them."""
NO_ROOM = -1
_BOUND = 1.25
"""Of the mean load, for replicas that are chosen by prefix."""


@compiled
def _behind(row: Int, at_s: float, e: Records) -> bool:
    """Whether a request may have left by now of which its count does not know yet."""
    return bool(e[row].quiet_until_s <= at_s)


@compiled
def _least(rows: IntArray, at_s: float, chosen: Int, e: Records) -> Int:
    """Fewest outstanding requests; of equals, the one after the last chosen."""
    n = len(rows)
    best = np.int64(0)
    fewest = np.iinfo(np.int32).max
    position = chosen
    for _ in range(n):
        position += 1
        if position >= n:
            position = 0
        if _behind(rows[position], at_s, e):
            return -2 - rows[position]
        if e[rows[position]].outstanding < fewest:
            best = position
            fewest = e[rows[position]].outstanding
    return best


@compiled
def _less_loaded(i: Int, rows: IntArray, at_s: float, gate: Gate, e: Records) -> Int:
    """The one with fewer outstanding requests of two different ones at random."""
    n = len(rows)
    drawn = mixed(mixed(np.uint64(gate.seed), np.uint64(i)), np.uint64(e[rows[0]].number))
    a = np.int64(drawn % np.uint64(n))
    b = np.int64((drawn >> np.uint64(32)) % np.uint64(max(n - 1, 1)))
    b = min(b + (b >= a), np.int64(n - 1))
    if _behind(rows[a], at_s, e):
        return -2 - rows[a]
    if _behind(rows[b], at_s, e):
        return -2 - rows[b]
    return b if e[rows[b]].outstanding < e[rows[a]].outstanding else a


@compiled
def _by_prefix(i: Int, rows: IntArray, at_s: float, gate: Gate, e: Records) -> Int:
    """The replica that weighs most for the prefix, of those that are not overloaded."""
    n = len(rows)
    total = 1
    for position in range(n):
        if _behind(rows[position], at_s, e):
            return -2 - rows[position]
        total += e[rows[position]].outstanding
    most = np.ceil(_BOUND * total / n)
    best = np.int64(0)
    heaviest = np.uint64(0)
    prefix = mixed(np.uint64(gate.seed), np.uint64(gate.prefix[i]))
    for position in range(n):
        replica = e[rows[position]]
        weight = mixed(prefix, np.uint64(replica.number))
        if replica.outstanding < most and weight >= heaviest:
            best = np.int64(position)
            heaviest = weight
    return best


@compiled
def choose(i: Int, rows: IntArray, at_s: float, chosen: Int, gate: Gate, e: Records) -> Int:
    """The position in `rows` of the replica for request i.

    Args:    rows: of the replicas that take requests; at least one.
             chosen: the position that was chosen last.
    Returns: the position; NO_ROOM where all have as many requests as they may; -2 - the row of a
             replica that must be moved on to the time first.
    """
    if gate.policy == ROUND_ROBIN:
        position = (chosen + 1) % len(rows)
    elif gate.policy == TWO_CHOICES:
        position = _less_loaded(i, rows, at_s, gate, e)
    elif gate.policy == PREFIX:
        position = _by_prefix(i, rows, at_s, gate, e)
    else:
        position = _least(rows, at_s, chosen, e)
    if gate.most < 0 or position < 0:
        return position
    if _behind(rows[position], at_s, e):
        return -2 - rows[position]
    if e[rows[position]].outstanding < gate.most:
        return position
    # Anybody with room.
    position = _least(rows, at_s, chosen, e)
    if position >= 0 and e[rows[position]].outstanding >= gate.most:
        return NO_ROOM
    return position
