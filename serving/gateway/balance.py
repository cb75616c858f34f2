"""Which replica takes a request: the policies of GatewaySpec, as they were simulated."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence
from typing import Protocol

from serving.gateway.spec import Balancing, GatewaySpec

_BOUND = 1.25
"""Of the mean load, for replicas that are chosen by prefix."""


class Loaded(Protocol):
    """What is looked at of a replica."""

    outstanding: int
    number: int


class Balancer:
    """Chooses by policy; where that replica is full, anybody with room.

    Source:  simulations/engine/_balance.py has the same for the twin.
    """

    def __init__(self, spec: GatewaySpec, rng: random.Random | None = None) -> None:
        self._policy: Balancing = spec.balancing
        self._most = spec.max_outstanding
        self._rng = rng or random.Random()
        self._last = -1

    def choose(self, replicas: Sequence[Loaded], prefix: int = 0) -> int | None:
        """The position of the replica; None where there is none with room.

        Args:    prefix: requests that begin alike have the same.
        """
        if not replicas:
            return None
        position = self._by_policy(replicas, prefix)
        if self._most is not None and replicas[position].outstanding >= self._most:
            position = self._least(replicas)
            if replicas[position].outstanding >= self._most:
                return None
        self._last = position
        return position

    def _by_policy(self, replicas: Sequence[Loaded], prefix: int) -> int:
        if self._policy == "round_robin":
            return (self._last + 1) % len(replicas)
        if self._policy == "two_choices" and len(replicas) > 1:
            a, b = self._rng.sample(range(len(replicas)), 2)
            return b if replicas[b].outstanding < replicas[a].outstanding else a
        if self._policy == "prefix_hash":
            return _heaviest(replicas, prefix)
        return self._least(replicas)

    def _least(self, replicas: Sequence[Loaded]) -> int:
        """Fewest outstanding requests; of equals, the one after the last chosen."""
        n = len(replicas)
        first = self._last + 1
        return min(
            ((first + step) % n for step in range(n)), key=lambda at: replicas[at].outstanding
        )


def _heaviest(replicas: Sequence[Loaded], prefix: int) -> int:
    """Rendezvous hashing over those that are not loaded above the bound."""
    total = 1 + sum(replica.outstanding for replica in replicas)
    most = math.ceil(_BOUND * total / len(replicas))
    return max(
        (at for at, replica in enumerate(replicas) if replica.outstanding < most),
        key=lambda at: zlib.crc32(b"%d/%d" % (prefix, replicas[at].number)),
    )
