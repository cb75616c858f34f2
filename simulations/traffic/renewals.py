"""Arrival times of renewal processes whose rate changes with time.

Gaps are drawn in operational time, in which one request is expected per unit, and mapped back
through the integral of the rate. So the local rate is the one that was asked for, and the local
burstiness (the coefficient of variation of the gaps) is the same at every rate: scaling time keeps
it. Thinning would not: of a renewal process with CV c a share p that is chosen request by request has
CV^2 = p c^2 + 1 - p, which tends to Poisson.

Source: Cox and Isham, Point Processes (1980), operational time and thinning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from serving.errors import InputError
from simulations.traffic.finite import Finite

FloatArray = npt.NDArray[np.float64]
_MOST_REQUESTS = 2**31 - 1


class Spike(Finite):
    """For some time everything comes `height` times as often."""

    at_s: float = Field(ge=0)
    height: float = Field(ge=1)
    """Factor on the rate."""
    length_s: float = Field(gt=0)


class Process(Finite):
    """Arrivals by a rate and the burstiness of their gaps."""

    @property
    def gap_shape(self) -> float:
        """Shape of the gamma law of the gaps: CV^-2."""
        return 1.0

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        """Times and the rate at each in requests a second, linear between them."""
        raise NotImplementedError

    def times(
        self, duration_s: float, rng: np.random.Generator, spikes: Sequence[Spike] = ()
    ) -> FloatArray:
        """Arrival times in (0, duration_s), sorted."""
        grid_s, rate_rps = self.rates(duration_s)
        knots_s, expected = spiked(grid_s, _cumulated(grid_s, rate_rps), spikes)
        drawn = renewals(float(expected[-1]), self.gap_shape, rng)
        times: FloatArray = np.interp(drawn, expected, knots_s)
        return times

    def scaled(self, factor: float) -> Self:
        """The same with so many times the rate, and as bursty."""
        known = self.model_dump()
        rates = {name: known[name] * factor for name in known if name.endswith("_rps")}
        return self.model_validate(known | rates)


def _cumulated(grid_s: FloatArray, rate_rps: FloatArray) -> FloatArray:
    """Integral of a rate that is linear between the points of a grid."""
    steps = (rate_rps[1:] + rate_rps[:-1]) / 2 * np.diff(grid_s)
    return np.concatenate([[0.0], np.cumsum(steps)])


def spiked(
    grid_s: FloatArray, expected: FloatArray, spikes: Sequence[Spike]
) -> tuple[FloatArray, FloatArray]:
    """Expected arrivals by time with spikes; of overlapping ones the excesses add up.

    Args:    grid_s, expected: knots of the integral of the rate, linear between them.
    Returns: the same with the begin and end of each spike as knots too.
    """
    if not spikes:
        return grid_s, expected
    begins = np.array([spike.at_s for spike in spikes])
    ends = begins + np.array([spike.length_s for spike in spikes])
    inside = np.concatenate([begins, ends])
    knots = np.unique(np.concatenate([grid_s, inside[inside < grid_s[-1]]]))
    plain = np.interp(knots, grid_s, expected)
    more = plain.copy()
    for spike, begin_s, end_s in zip(spikes, begins, ends, strict=True):
        within = np.interp(np.clip(knots, begin_s, end_s), grid_s, expected)
        more += (spike.height - 1) * (within - np.interp(begin_s, grid_s, expected))
    return knots, more


def sped_up(times_s: FloatArray, spikes: Sequence[Spike]) -> FloatArray:
    """A recording with spikes: in each it is played `height` times as fast, then it goes on."""
    if not spikes or not len(times_s):
        return times_s
    end_s = float(times_s[-1]) + 1.0
    knots, played = spiked(np.array([0.0, end_s]), np.array([0.0, end_s]), spikes)
    return np.interp(times_s, played, knots)


def renewals(expected: float, shape: float, rng: np.random.Generator) -> FloatArray:
    """Event times in (0, expected) of a unit-rate renewal process with gamma(shape) gaps.

    The process is found running: its first gap is what is left of one that began before (length
    biased, of which a uniform share is left). Started afresh it would send (c^2 - 1) / 2 too many.
    An infinite shape is a clock, and begins with an event at 0.

    Raises:  InputError: more requests than can be numbered.
    """
    if expected > _MOST_REQUESTS:
        raise InputError(
            f"{expected:.3g} requests are expected, more than {_MOST_REQUESTS}",
            remedy="Lower the rate or the duration.",
        )
    if np.isinf(shape):
        return np.arange(0, expected, dtype=np.float64)
    blocks: list[FloatArray] = []
    reached = 0.0
    while reached < expected:
        scatter = 6 * np.sqrt(expected / min(shape, 1.0))
        gaps = rng.gamma(shape, 1 / shape, int(expected - reached + scatter + 16))
        if not blocks and shape != 1:  # of an exponential gap what is left is like the whole
            gaps[0] = rng.random() * rng.gamma(shape + 1, 1 / shape)
        block = reached + np.cumsum(gaps)
        blocks.append(block)
        reached = float(block[-1])
    times = np.concatenate(blocks) if blocks else np.empty(0)
    return times[times < expected]
