"""How long prompts and outputs are."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from simulations.traffic.finite import Finite
from simulations.traffic.formats import read_trace

IntArray = npt.NDArray[np.int64]


class Fixed(Finite):
    """Every request has the same length."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=1)

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        return np.full(n, self.tokens, dtype=np.int64)

    @property
    def longest_tokens(self) -> int:
        return self.tokens


class LogNormal(Finite):
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


class Uniform(Finite):
    """Every length between two is as likely, both included."""

    kind: Literal["uniform"] = "uniform"
    min_tokens: int = Field(ge=1)
    max_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens(={self.min_tokens}) must be <= max_tokens(={self.max_tokens})"
            )
        return self

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        return rng.integers(self.min_tokens, self.max_tokens, n, endpoint=True)

    @property
    def longest_tokens(self) -> int:
        return self.max_tokens


class Empirical(Finite):
    """Lengths as they were counted: each with its weight."""

    kind: Literal["empirical"] = "empirical"
    tokens: tuple[int, ...] = Field(min_length=1)
    weights: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _paired(self) -> Empirical:
        if len(self.tokens) != len(self.weights):
            raise ValueError(
                f"weights(of {len(self.weights)}) must be as many as tokens(of {len(self.tokens)})"
            )
        if min(self.tokens) < 1 or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError("tokens must be >= 1, weights >= 0 and not all 0")
        return self

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        share = np.asarray(self.weights) / sum(self.weights)
        return rng.choice(np.asarray(self.tokens, dtype=np.int64), n, p=share)

    @property
    def longest_tokens(self) -> int:
        return max(self.tokens)


class Recorded(Finite):
    """Lengths drawn from the rows of a recorded trace.

    Where prompt and output come from the same trace, each request takes both from one row.
    """

    kind: Literal["recorded"] = "recorded"
    path: str
    field: Literal["prompt", "output"]
    length_divisor: float = Field(1.0, ge=1)
    """Divides the lengths, rounded up."""
    max_tokens: int | None = Field(None, ge=1)

    def draw(self, n: int, rng: np.random.Generator) -> IntArray:
        column = self._column()
        return column[rng.integers(0, len(column), n)]

    @property
    def longest_tokens(self) -> int:
        return int(self._column().max())

    def _column(self) -> IntArray:
        trace = read_trace(self.path)
        recorded = trace.prompt_tokens if self.field == "prompt" else trace.output_tokens
        divided = np.ceil(recorded / self.length_divisor).astype(np.int64)
        return divided if self.max_tokens is None else divided.clip(max=self.max_tokens)


Lengths = Annotated[Fixed | LogNormal | Uniform | Empirical | Recorded, Field(discriminator="kind")]
