"""When requests arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from serving.values import Value
from simulations.profiles import PROFILES
from simulations.traffic.traces import Trace, digest, read_trace

FloatArray = npt.NDArray[np.float64]


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
        burstiness = self.burstiness or PROFILES[self.profile].burstiness
        return _following(grid_s, self.rate_rps(grid_s, duration_s), burstiness, rng)


class Ramp(Value):
    """A rate that grows or falls evenly over the duration, with gamma-distributed gaps.

    Gaps are drawn in operational time, as for a `Day`.
    """

    kind: Literal["ramp"] = "ramp"
    start_rps: float = Field(ge=0)
    end_rps: float = Field(ge=0)
    burstiness: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _sends(self) -> Ramp:
        if self.start_rps + self.end_rps <= 0:
            raise ValueError("start_rps(=0) and end_rps(=0) must not both be 0")
        return self

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        grid_s = np.linspace(0, duration_s, 1001)
        rate = self.start_rps + (self.end_rps - self.start_rps) * grid_s / duration_s
        return _following(grid_s, rate, self.burstiness, rng)


class ClosedLoop(Value):
    """A fixed number of users, each sending the next request when the last one is answered."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(ge=1)
    requests: int = Field(ge=1)

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        return np.zeros(self.requests)


class Replay(Value):
    """A recorded trace with its own time stamps; lengths are the trace's where none are given.

    Use `Replay.of`, which notes the digest of the file, so that a workload names its data exactly.
    """

    kind: Literal["replay"] = "replay"
    path: str
    format: str = "auto"
    """One of `traces.FORMATS`."""
    sha256: str | None = None
    """Checked when the trace is read; None takes whatever lies there."""
    start_s: float = Field(0.0, ge=0)
    """Begin of the window, in the trace's time."""
    length_s: float | None = Field(None, gt=0)
    """Length of the window, in the trace's time; None is all that follows."""
    speedup: float = Field(1.0, gt=0)
    """2 plays the trace in half its time."""
    spread_ticks: bool = False
    """Spread requests of one time stamp over the time up to the next, in order: many traces are kept
    on a coarse clock, whose bursts are none."""
    length_divisor: float = Field(1.0, ge=1)
    """Divides prompts and outputs (rounded up), so that a small context can hold long ones."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    max_output_tokens: int | None = Field(None, ge=1)

    @classmethod
    def of(cls, path: Path | str, **chosen: object) -> Self:
        """A replay of exactly the file that lies there now.

        Raises:  InputError: no such file, or no trace.
        """
        replay = cls.model_validate({"path": str(path), "sha256": digest(path), **chosen})
        replay.trace(0)
        return replay

    def trace(self, seed: int) -> Trace:
        """The window of the trace as it is played: times from 0, lengths divided and cut.

        Args:    seed: of the spread within a tick (and of a format that is drawn, as ServeGen's).
        Raises:  InputError: no such file, another one than sha256 names, or nothing in the window.
        """
        whole = read_trace(self.path, self.format, seed=seed, sha256=self.sha256)
        if self.spread_ticks:
            whole = whole.spread(np.random.default_rng([seed, 5]))
        return whole.window(self.start_s, self.length_s).played(
            self.speedup, self.length_divisor, self.max_prompt_tokens, self.max_output_tokens
        )

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        raise TypeError("a replay's times come with its lengths: see Workload.schedule")


Arrivals = Annotated[
    Constant | Poisson | Gamma | Ramp | Day | ClosedLoop | Replay, Field(discriminator="kind")
]


def _following(
    grid_s: FloatArray, rate_rps: FloatArray, burstiness: float, rng: np.random.Generator
) -> FloatArray:
    """Times of a renewal process in operational time: the integral of the rate, mapped back."""
    steps = (rate_rps[1:] + rate_rps[:-1]) / 2 * np.diff(grid_s)
    expected = np.concatenate([[0.0], np.cumsum(steps)])
    times: FloatArray = np.interp(_renewals(expected[-1], burstiness, rng), expected, grid_s)
    return times


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
