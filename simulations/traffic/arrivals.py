"""When requests arrive.

A process says its rate and the burstiness of its gaps; `renewals.py` draws it. Of a profile or a ramp
the rate is linear between the values that are given.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from simulations.profiles import DAY_S, PROFILES
from simulations.traffic.finite import Finite
from simulations.traffic.rates import Rates
from simulations.traffic.renewals import FloatArray, Process
from simulations.traffic.replay import Replay

_KNOTS_A_DAY = 24 * 60


class Constant(Process):
    """Evenly spaced arrivals."""

    kind: Literal["constant"] = "constant"
    rate_rps: float = Field(gt=0)

    @property
    def gap_shape(self) -> float:
        return float("inf")

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        return _steady(self.rate_rps, duration_s)


class Poisson(Process):
    """Independent arrivals."""

    kind: Literal["poisson"] = "poisson"
    rate_rps: float = Field(gt=0)

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        return _steady(self.rate_rps, duration_s)


class Gamma(Process):
    """Gamma-distributed gaps. Burstiness is vLLM's: 1 is Poisson, below 1 is burstier (CV^-2)."""

    kind: Literal["gamma"] = "gamma"
    rate_rps: float = Field(gt=0)
    burstiness: float = Field(gt=0)

    @property
    def gap_shape(self) -> float:
        return self.burstiness

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        return _steady(self.rate_rps, duration_s)


class Ramp(Process):
    """A rate that grows or falls evenly over the duration, with gamma-distributed gaps."""

    kind: Literal["ramp"] = "ramp"
    start_rps: float = Field(ge=0)
    end_rps: float = Field(ge=0)
    burstiness: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _sends(self) -> Ramp:
        if self.start_rps + self.end_rps <= 0:
            raise ValueError("start_rps(=0) and end_rps(=0) must not both be 0")
        return self

    @property
    def gap_shape(self) -> float:
        return self.burstiness

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        grid_s = np.linspace(0, duration_s, 1001)
        return grid_s, self.start_rps + (self.end_rps - self.start_rps) * grid_s / duration_s


class _Profiled(Process):
    """A published profile, scaled to a peak, with gamma-distributed gaps."""

    profile: str
    peak_rps: float = Field(gt=0)
    """Rate in the busiest step of what is played."""
    burstiness: float | None = Field(None, gt=0)
    """None takes the published one of the profile."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.profile not in PROFILES:
            raise ValueError(f"profile(={self.profile!r}) must be one of {sorted(PROFILES)}")
        if self.burstiness is None and PROFILES[self.profile].burstiness is None:
            raise ValueError(
                f"burstiness(=None) of profile {self.profile!r} was not published: give one"
                " (1 is Poisson)"
            )
        return self

    @property
    def gap_shape(self) -> float:
        found = self.burstiness or PROFILES[self.profile].burstiness
        assert found is not None
        return found

    def _played(self) -> tuple[float, ...]:
        """Values of the profile, evenly over the duration and round again."""
        raise NotImplementedError

    def rate_rps(self, t_s: FloatArray, duration_s: float) -> FloatArray:
        """Rate at each time: float array like t_s, linear between the middles of the steps."""
        shape = np.asarray(self._played())
        middles = np.arange(len(shape)) + 0.5
        at = np.asarray(t_s, dtype=np.float64) / duration_s * len(shape)
        relative: FloatArray = np.interp(at, middles, shape, period=len(shape))
        return relative * (self.peak_rps / float(shape.max()))

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        days = len(self._played()) / PROFILES[self.profile].steps_a_day
        grid_s = np.linspace(0, duration_s, int(days * _KNOTS_A_DAY) + 1)
        return grid_s, self.rate_rps(grid_s, duration_s)


class Day(_Profiled):
    """A day of a published profile.

    A duration below 24 hours is the whole day played faster: the shape is kept and the rate is not
    multiplied.
    """

    kind: Literal["day"] = "day"
    profile: str = "servegen-deepseek-r1"
    day: int = Field(0, ge=0)
    """Of a profile of several days, from 0."""

    @model_validator(mode="after")
    def _has_it(self) -> Day:
        days = len(PROFILES[self.profile].days)
        if self.day >= days:
            raise ValueError(f"day(={self.day}) must be < {days}, the days of {self.profile!r}")
        return self

    def _played(self) -> tuple[float, ...]:
        return PROFILES[self.profile].days[self.day]


class Week(_Profiled):
    """Days of a published profile one after the other, begun again where there are fewer.

    A duration of another length plays all of them faster or slower, as for a `Day`.
    """

    kind: Literal["week"] = "week"
    profile: str = "azure-code-week-2024"
    first_day: int = Field(0, ge=0)
    days: int = Field(7, ge=1)

    @property
    def span_s(self) -> float:
        """The duration that plays it in its own time."""
        return self.days * DAY_S

    def _played(self) -> tuple[float, ...]:
        known = PROFILES[self.profile].days
        chosen = (known[(self.first_day + i) % len(known)] for i in range(self.days))
        return tuple(rate for day in chosen for rate in day)


class ClosedLoop(Finite):
    """A fixed number of users, each sending the next request when the last one is answered."""

    kind: Literal["closed"] = "closed"
    concurrency: int = Field(ge=1)
    requests: int = Field(ge=1)

    def times(self, duration_s: float, rng: np.random.Generator) -> FloatArray:
        return np.zeros(self.requests)


_OneProcess = Annotated[
    Constant | Poisson | Gamma | Ramp | Day | Week | Rates, Field(discriminator="kind")
]


class Superposed(Process):
    """Several processes at once, each with a random stream of its own.

    Many independent bursty clients look smoother together than each one: the gaps tend to Poisson,
    while counts over long windows keep the rate-weighted mean of CV^2 (Whitt 1982).
    """

    kind: Literal["superposed"] = "superposed"
    parts: tuple[_OneProcess, ...] = Field(min_length=1)

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        found = [part.rates(duration_s) for part in self.parts]
        grid_s = np.unique(np.concatenate([grid for grid, _ in found]))
        return grid_s, np.sum([np.interp(grid_s, *one) for one in found], axis=0)

    def times(self, duration_s: float, rng: np.random.Generator, spikes: Any = ()) -> FloatArray:
        streams = rng.spawn(len(self.parts))
        drawn = [
            part.times(duration_s, stream, spikes)
            for part, stream in zip(self.parts, streams, strict=True)
        ]
        return np.sort(np.concatenate(drawn))

    def scaled(self, factor: float) -> Superposed:
        return Superposed(parts=tuple(part.scaled(factor) for part in self.parts))


Arrivals = Annotated[
    Constant | Poisson | Gamma | Ramp | Day | Week | Rates | Superposed | ClosedLoop | Replay,
    Field(discriminator="kind"),
]


def _steady(rate_rps: float, duration_s: float) -> tuple[FloatArray, FloatArray]:
    return np.array([0.0, duration_s]), np.full(2, rate_rps)
