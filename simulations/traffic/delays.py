"""Laws of times: what a network takes, how long somebody waits."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from simulations.traffic.finite import Finite

FloatArray = npt.NDArray[np.float64]
_Z99 = 2.3263478740408408


class ConstantDelay(Finite):
    """Always the same."""

    kind: Literal["constant"] = "constant"
    seconds: float = Field(ge=0)

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        return np.full(n, self.seconds)


class UniformDelay(Finite):
    """Every time between two is as likely."""

    kind: Literal["uniform"] = "uniform"
    min_s: float = Field(ge=0)
    max_s: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> UniformDelay:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s(={self.min_s}) must be <= max_s(={self.max_s})")
        return self

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        return rng.uniform(self.min_s, self.max_s, n)


class ExponentialDelay(Finite):
    """As likely to end at any moment as at any other."""

    kind: Literal["exponential"] = "exponential"
    mean_s: float = Field(gt=0)

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        return rng.exponential(self.mean_s, n)


class LogNormalDelay(Finite):
    """A median with a tail up to its 99th percentile: sigma = ln(p99 / median) / 2.326."""

    kind: Literal["lognormal"] = "lognormal"
    median_s: float = Field(gt=0)
    p99_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> LogNormalDelay:
        if self.median_s > self.p99_s:
            raise ValueError(f"median_s(={self.median_s}) must be <= p99_s(={self.p99_s})")
        return self

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        return rng.lognormal(np.log(self.median_s), np.log(self.p99_s / self.median_s) / _Z99, n)


class EmpiricalDelay(Finite):
    """Times as they were measured, each as likely."""

    kind: Literal["empirical"] = "empirical"
    seconds: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1)

    def draw(self, n: int, rng: np.random.Generator) -> FloatArray:
        return rng.choice(np.asarray(self.seconds, dtype=np.float64), n)


Delay = Annotated[
    ConstantDelay | UniformDelay | ExponentialDelay | LogNormalDelay | EmpiricalDelay,
    Field(discriminator="kind"),
]
