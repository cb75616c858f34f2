"""Where requests come from, for the twin and for real load alike.

A `Workload` says when requests arrive and how long they are; `Workload.schedule()` draws it. The
same seed gives the same schedule. Arrivals, prompt lengths and output lengths have a random stream
each, so that changing one leaves the others alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, model_validator

from serving.values import Value
from simulations.profiles import PROFILES

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Fixed(Value):
    """Every request has the same length."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=1)

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        return np.full(n, self.tokens, dtype=np.int64)

    @property
    def longest_tokens(self) -> int:
        return self.tokens


class LogNormal(Value):
    """Log-normal lengths by median and mean, cut off at both ends.

    The mean is that of the law before the cut: sigma^2 = 2 ln(mean / median).
    """

    kind: Literal["lognormal"] = "lognormal"
    median_tokens: float = Field(gt=0)
    mean_tokens: float = Field(gt=0)
    min_tokens: int = Field(1, ge=1)
    max_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _skewed(self) -> LogNormal:
        if self.mean_tokens < self.median_tokens:
            raise ValueError(
                f"mean_tokens(={self.mean_tokens}) must be >= median_tokens(={self.median_tokens})"
            )
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens(={self.min_tokens}) must be <= max_tokens(={self.max_tokens})"
            )
        return self

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        sigma = np.sqrt(2 * np.log(self.mean_tokens / self.median_tokens))
        raw = rng.lognormal(np.log(self.median_tokens), sigma, n)
        return np.clip(np.rint(raw), self.min_tokens, self.max_tokens).astype(np.int64)

    @property
    def longest_tokens(self) -> int:
        return self.max_tokens


Lengths = Annotated[Fixed | LogNormal, Field(discriminator="kind")]


class Constant(Value):
    """Evenly spaced arrivals."""

    kind: Literal["constant"] = "constant"
    rate_rps: float = Field(gt=0)

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        return np.arange(0, duration_s, 1 / self.rate_rps, dtype=np.float64)


class Poisson(Value):
    """Independent arrivals."""

    kind: Literal["poisson"] = "poisson"
    rate_rps: float = Field(gt=0)

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        return _renewals(self.rate_rps * duration_s, 1.0, rng) / self.rate_rps


class Gamma(Value):
    """Gamma-distributed gaps. Burstiness is vLLM's: 1 is Poisson, below 1 is burstier (CV^-2)."""

    kind: Literal["gamma"] = "gamma"
    rate_rps: float = Field(gt=0)
    burstiness: float = Field(gt=0)

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        return _renewals(self.rate_rps * duration_s, self.burstiness, rng) / self.rate_rps


class Day(Value):
    """A published daily profile, scaled to a peak, with gamma-distributed gaps.

    Gaps are drawn in operational time (the integral of the rate) and mapped back, so the local rate
    follows the profile and the local burstiness is the same all day. A duration below 24 hours is
    the whole day played faster: the shape is kept and the rate is not multiplied.
    """

    kind: Literal["day"] = "day"
    profile: str = "servegen-deepseek-r1"
    peak_rps: float = Field(gt=0)
    burstiness: float | None = Field(None, gt=0)
    """None takes the published one of the profile."""

    @model_validator(mode="after")
    def _known(self) -> Day:
        if self.profile not in PROFILES:
            raise ValueError(f"profile(={self.profile!r}) must be one of {sorted(PROFILES)}")
        return self

    def rate_rps(self, t_s: FloatArray, duration_s: float) -> FloatArray:
        """Rate at each time: float array like t_s, linear between the hourly values."""
        shape = np.asarray(PROFILES[self.profile].hourly_shape)
        hours = np.asarray(t_s, dtype=np.float64) / duration_s * 24
        relative: FloatArray = np.interp(hours, np.arange(24) + 0.5, shape, period=24)
        return relative * (self.peak_rps / float(shape.max()))

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        grid_s = np.linspace(0, duration_s, 24 * 60 + 1)
        rate = self.rate_rps(grid_s, duration_s)
        expected = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid_s))])
        burstiness = self.burstiness or PROFILES[self.profile].burstiness
        times: FloatArray = np.interp(_renewals(expected[-1], burstiness, rng), expected, grid_s)
        return times


class ClosedLoop(Value):
    """A fixed number of users, each sending the next request when the last one is answered."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(ge=1)
    requests: int = Field(ge=1)

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        return np.zeros(self.requests)


Arrivals = Annotated[Constant | Poisson | Gamma | Day | ClosedLoop, Field(discriminator="kind")]


def _renewals(expected: float, shape: float, rng: np.random.Generator) -> FloatArray:
    """Event times in (0, expected) of a unit-rate renewal process with gamma(shape) gaps."""
    blocks: list[FloatArray] = []
    reached = 0.0
    while reached < expected:
        n = int(expected - reached + 6 * np.sqrt(expected) + 16)
        block = reached + np.cumsum(rng.gamma(shape, 1 / shape, n))
        blocks.append(block)
        reached = float(block[-1])
    times = np.concatenate(blocks) if blocks else np.empty(0)
    return times[times < expected]


@dataclass(frozen=True)
class Schedule:
    """Drawn requests, sorted by arrival: three arrays of equal length (n,)."""

    arrived_at_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    def frame(self) -> pd.DataFrame:
        """One row per request."""
        return pd.DataFrame(
            {
                "arrived_at_s": self.arrived_at_s,
                "prompt_tokens": self.prompt_tokens,
                "output_tokens": self.output_tokens,
            }
        )


class Workload(Value):
    """When requests arrive, how long they are, for how long, and the seed."""

    arrivals: Arrivals
    prompt_tokens: Lengths
    output_tokens: Lengths
    duration_s: float = Field(60.0, gt=0)
    warmup_s: float = Field(0.0, ge=0)
    """Requests scheduled before this are sent but not counted."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_is_left(self) -> Workload:
        if self.warmup_s >= self.duration_s:
            raise ValueError(f"warmup_s(={self.warmup_s}) must be < duration_s(={self.duration_s})")
        return self

    def schedule(self) -> Schedule:
        """Draw the requests."""
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence(self.seed).spawn(3)]
        times = self.arrivals.times(self.duration_s, streams[0])
        return Schedule(
            arrived_at_s=times,
            prompt_tokens=self.prompt_tokens.draw(len(times), streams[1]),
            output_tokens=self.output_tokens.draw(len(times), streams[2]),
        )

    def at(self, **changes: Any) -> Workload:
        """A copy with some fields changed, validated."""
        return Workload.model_validate(self.model_dump() | changes)
