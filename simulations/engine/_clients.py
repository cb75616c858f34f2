"""Clients in compiled code: when they give up, whether they send again, and who follows whom."""

from __future__ import annotations

import numpy as np

from simulations.engine._blocks import uniform
from simulations.engine._compiler import compiled
from simulations.engine._lists import COMING_HEAP, push
from simulations.engine._state import COMING, Follow, Gate, Int, Records


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
    request.out = 0
    follow.coming[0] = push(COMING_HEAP, follow.coming[0], np.int64(i), q)


@compiled
def over(i: Int, at_s: float, answered: bool, follow: Follow, q: Records, gate: Gate) -> bool:
    """Nothing more happens to request i, unless it is sent again; whoever waited for it is sent.

    Args:    at_s: when its client knows.
    Returns: whether it is sent again.
    """
    if not answered:
        next_s = again_s(i, at_s, q, gate)
        if next_s < np.inf:
            _send_again(i, next_s, follow, q, gate)
            return True
    if follow.closed[0] < follow.closed[1]:
        j = follow.closed[0]
        follow.closed[0] += 1
        q[j].sent_s = at_s
        follow.coming[0] = push(COMING_HEAP, follow.coming[0], j, q)
    if answered and len(follow.turn) > 0 and follow.turn[i] >= 0:
        j = follow.turn[i]
        q[j].sent_s = at_s + follow.think_s[j]
        follow.coming[0] = push(COMING_HEAP, follow.coming[0], j, q)
    return False
