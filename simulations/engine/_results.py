"""The gateway's cache of answers, in compiled code: least recently used, with a time to live.

Answers that come back between two questions enter in the order of the replicas that gave them.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._compiler import compiled
from simulations.engine._state import Gate, Int

_NEWEST, _OLDEST, _COUNT = range(3)


@compiled
def _drop(k: Int, gate: Gate) -> None:
    newer, older = np.int64(gate.newer[k]), np.int64(gate.older[k])
    if newer < 0:
        gate.ends[_NEWEST] = older
    else:
        gate.older[newer] = older
    if older < 0:
        gate.ends[_OLDEST] = newer
    else:
        gate.newer[older] = newer
    gate.ends[_COUNT] -= 1


@compiled
def _put_first(k: Int, gate: Gate) -> None:
    head = np.int64(gate.ends[_NEWEST])
    gate.newer[k] = -1
    gate.older[k] = head
    if head < 0:
        gate.ends[_OLDEST] = k
    else:
        gate.newer[head] = k
    gate.ends[_NEWEST] = k
    gate.ends[_COUNT] += 1


@compiled
def store(k: Int, at_s: float, gate: Gate) -> None:
    """The answer to question k is there from now on."""
    if gate.stored_s[k] > -np.inf:
        _drop(k, gate)
    gate.stored_s[k] = np.maximum(gate.stored_s[k], at_s)
    _put_first(k, gate)
    if gate.ends[_COUNT] > gate.cache_size:
        oldest = np.int64(gate.ends[_OLDEST])
        _drop(oldest, gate)
        gate.stored_s[oldest] = -np.inf


@compiled
def answered(k: Int, at_s: float, gate: Gate) -> bool:
    """Whether the answer is there at this time; it is then the last to go."""
    if gate.stored_s[k] == -np.inf:
        return False
    _drop(k, gate)
    if gate.stored_s[k] + gate.cache_ttl_s <= at_s:
        gate.stored_s[k] = -np.inf
        return False
    _put_first(k, gate)
    return True
