"""What clients do when an answer does not come, and who goes first."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from simulations.traffic.delays import Delay
from simulations.traffic.finite import Finite

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Clients(Finite):
    """Time-outs, retries and patience. Defaults are those of OpenAI's Python client.

    An attempt that is not answered within `timeout_s`, is refused or fails is made again, up to
    `max_retries` times, after a pause that doubles. Whoever is out of patience leaves and does not come
    back, whatever attempt it is.

    Source:  openai-python, _constants.py and _base_client.py (_calculate_retry_timeout); its time-out
    counts from byte to byte, which is the whole answer where that is not streamed.
    """

    timeout_s: float | None = Field(600.0, gt=0)
    """Of one attempt, from when it is sent to the end of its answer; None: never."""
    max_retries: int = Field(2, ge=0)
    backoff_s: float = Field(0.5, ge=0)
    """Pause before the first retry."""
    max_backoff_s: float = Field(8.0, ge=0)
    jitter: float = Field(0.25, ge=0, le=1)
    """A uniform share up to this is taken off each pause, so that clients do not come back together."""
    patience: Delay | None = None
    """Time from the first attempt after which the user leaves; None: never."""

    @model_validator(mode="after")
    def _grows(self) -> Clients:
        if self.max_backoff_s < self.backoff_s:
            raise ValueError(
                f"max_backoff_s(={self.max_backoff_s}) must be >= backoff_s(={self.backoff_s})"
            )
        return self

    def pauses_s(self, retry: IntArray | int, uniform: FloatArray | float) -> FloatArray:
        """Seconds before a retry: min(backoff 2^(retry - 1), most) (1 - jitter u).

        Args:    retry: 1 for the first.
                 uniform: in [0, 1).
        """
        doubled = self.backoff_s * np.exp2(np.minimum(np.asarray(retry) - 1, 60))
        return np.asarray(np.minimum(doubled, self.max_backoff_s) * (1 - self.jitter * uniform))


class Priorities(Finite):
    """Classes of requests: the k-th share has priority k, and 0 is served first."""

    shares: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _add_up(self) -> Priorities:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(
                f"shares(={self.shares}) must add up to 1, not to {sum(self.shares):g}"
            )
        return self

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        return rng.choice(len(self.shares), n, p=np.asarray(self.shares) / sum(self.shares))
