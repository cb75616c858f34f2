"""Published days and weeks of traffic: shape, burstiness and lengths, each with its source.

The figures lie in profiles.json. Only the shape is used; the arrivals' `peak_rps` sets the level.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DAY_S = 86_400.0


@dataclass(frozen=True)
class ProfileLengths:
    """Medians and means of what is asked and answered, in tokens."""

    prompt_median_tokens: float
    prompt_mean_tokens: float
    output_median_tokens: float
    output_mean_tokens: float


@dataclass(frozen=True)
class Profile:
    """Some whole days of real traffic."""

    source: str
    note: str
    """What it is, and how the figures were made."""
    unit: str
    """Of the rates. Tokens and nodes follow the requests only roughly."""
    step_s: float
    rates: tuple[float, ...]
    """Mean of each step, from midnight or as the note says."""
    burstiness: float | None
    """Squared inverse of the coefficient of variation of the gaps: 1 is Poisson. None: not published."""
    lengths: ProfileLengths | None

    @property
    def steps_a_day(self) -> int:
        return round(DAY_S / self.step_s)

    @property
    def days(self) -> tuple[tuple[float, ...], ...]:
        """The rates of each day."""
        a_day = self.steps_a_day
        return tuple(self.rates[i : i + a_day] for i in range(0, len(self.rates), a_day))


def _read() -> dict[str, Profile]:
    declared: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    )
    return {
        name: Profile(
            **{
                **fields,
                "rates": tuple(fields["rates"]),
                "lengths": fields["lengths"] and ProfileLengths(**fields["lengths"]),
            }
        )
        for name, fields in declared.items()
    }


PROFILES: dict[str, Profile] = _read()
