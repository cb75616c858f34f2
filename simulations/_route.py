"""The gateway's routing over all replicas, between two control events, in compiled code.

Least outstanding requests over the serving replicas; of equals, the one after the last chosen.
Requests that find no serving replica wait at the gateway in order of arrival.

Ties: a control event at t comes before an arrival at t; a request that ends exactly when another
arrives has left.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulations._replica import advance
from simulations._scheduler import enqueue
from simulations._state import Limits, Replicas, Requests, Slots, Speed, compiled

IntArray = npt.NDArray[np.int64]

WAITING, ARRIVING, CHOSEN = 0, 1, 2
"""Cursor: the first request waiting at the gateway, the next to arrive, the position chosen
last."""


@compiled
def _dispatch(
    i: int,
    at_s: float,
    serving: IntArray,
    cursor: IntArray,
    q: Requests,
    e: Replicas,
    running: Slots,
    speed: Speed,
    limits: Limits,
) -> None:
    """Send request i to the serving replica with the fewest outstanding requests at that time."""
    n = len(serving)
    best = -1
    fewest = np.iinfo(np.int64).max
    for offset in range(1, n + 1):
        position = (cursor[CHOSEN] + offset) % n
        r = serving[position]
        if e[r].quiet_until_s <= at_s:
            advance(r, at_s, q, e, running, speed, limits, True)
        if e[r].outstanding < fewest:
            best = position
            fewest = e[r].outstanding
    cursor[CHOSEN] = best
    enqueue(serving[best], i, at_s, q, e, limits)


@compiled
def run_until(
    now_s: float,
    until_s: float,
    serving: IntArray,
    alive: IntArray,
    cursor: IntArray,
    q: Requests,
    e: Replicas,
    running: Slots,
    speed: Speed,
    limits: Limits,
) -> None:
    """Route all that arrives in [now, until) and bring every replica to `until`.

    Args:    serving: rows of the replicas that take new requests.
             alive: rows of all replicas that may hold requests, draining ones too.
    """
    if len(serving) > 0:
        while cursor[WAITING] < cursor[ARRIVING]:
            _dispatch(cursor[WAITING], now_s, serving, cursor, q, e, running, speed, limits)
            cursor[WAITING] += 1
    while cursor[ARRIVING] < len(q) and q[cursor[ARRIVING]].sent_s < until_s:
        i = cursor[ARRIVING]
        cursor[ARRIVING] += 1
        if len(serving) > 0:
            _dispatch(i, q[i].sent_s, serving, cursor, q, e, running, speed, limits)
            cursor[WAITING] = cursor[ARRIVING]
    for position in range(len(alive)):
        advance(alive[position], until_s, q, e, running, speed, limits, True)
