"""A random stream for each source of randomness, so that changing one leaves the others alone."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np

Source = Literal["crash", "node loss", "spot reclaim", "activation", "gateway"]
_KEYS: dict[Source, int] = {
    "crash": 0,
    "node loss": 1,
    "spot reclaim": 2,
    "activation": 3,
    "gateway": 4,
}


class Streams:
    """Streams below the one of a run. What one draws depends on its source and numbers alone."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._seed = cast(np.random.SeedSequence, rng.bit_generator.seed_seq)

    def of(self, source: Source, *numbers: int) -> np.random.Generator:
        """For example of ("crash", pod, restarts)."""
        key = (*self._seed.spawn_key, _KEYS[source], *numbers)
        return np.random.default_rng(np.random.SeedSequence(self._seed.entropy, spawn_key=key))

    def wait_s(self, per_hour: float, source: Source, *numbers: int) -> float:
        """Seconds to the first event of a Poisson process; infinite at rate 0."""
        if per_hour == 0:
            return float("inf")
        return float(self.of(source, *numbers).exponential(3600 / per_hour))
