"""Questions that many ask: Zipf's law."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field

from simulations.traffic.finite import Finite

IntArray = npt.NDArray[np.int64]


class Questions(Finite):
    """Some requests ask one of a number of known questions, the k-th as often as k^-zipf.

    The same question has the same prompt and an answer of the same length: those of the request that
    asks it first.

    Source:  Breslau et al., Web Caching and Zipf-like Distributions, INFOCOM 1999.
    """

    distinct: int = Field(ge=1)
    zipf: float = Field(1.0, ge=0)
    """0 makes all as popular."""
    share: float = Field(1.0, gt=0, le=1)
    """Of the requests that ask one of them; every other question is asked once."""

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        """(n,) which question, the most popular is 0; -1 where it is asked once."""
        asked = rng.random(n) < self.share
        return np.where(asked, zipf_ranks(n, self.distinct, self.zipf, rng), -1)


def zipf_ranks(n: int, distinct: int, exponent: float, rng: np.random.Generator) -> IntArray:
    """Ranks from 0, the k-th with a probability as (k + 1)^-exponent."""
    weights = np.arange(1, distinct + 1, dtype=np.float64) ** -exponent
    return rng.choice(distinct, n, p=weights / weights.sum())


def first_askers(key: IntArray) -> IntArray:
    """(n,) position of the request that asks the same question first; its own where there is none."""
    found = np.arange(len(key))
    known = np.flatnonzero(key >= 0)
    _, first, which = np.unique(key[known], return_index=True, return_inverse=True)
    found[known] = known[first[which]]
    return found
