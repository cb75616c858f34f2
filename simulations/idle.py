"""How much of a fleet of a fixed size has nothing to do, by published profiles.

The fleet is as large as the busiest hour of the day needs, and what it can do is taken as
proportional to its size, so that the idle share of an hour is 1 - target x rate / peak rate. Whole
replicas, bursts and queues are left to the simulation; they only add to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from serving.errors import InputError
from serving.values import Value
from simulations.profiles import PROFILES, Profile

_DAY_HOURS = 24


@dataclass(frozen=True)
class IdleDay:
    """One day of a fleet that is sized for its busiest hour; shares are 0 to 1."""

    swing: float
    """Rate of the busiest hour over that of the quietest."""
    day_share: float
    """Idle share of the whole day."""
    night_share: float
    """Idle share of the night: the quietest hours in a row, midnight included."""


def idle_days(
    profile: Profile, *, night_hours: int = 8, target_utilisation: float = 1.0
) -> tuple[IdleDay, ...]:
    """Each day of a profile.

    Args:    night_hours: 1 to 24.
             target_utilisation: of the fleet in its busiest hour, above 0 to 1.
    Raises:  InputError: an argument outside its range.
    """
    if not 1 <= night_hours <= _DAY_HOURS:
        raise InputError(
            f"night_hours(={night_hours}) must be 1 to 24", remedy="A usual night has 8."
        )
    if not 0 < target_utilisation <= 1:
        raise InputError(
            f"target_utilisation(={target_utilisation}) must be above 0, at most 1",
            remedy="1 is a fleet that is full in its busiest hour.",
        )
    found = []
    for rates in profile.days:
        hourly = np.reshape(rates, (_DAY_HOURS, -1)).mean(axis=1)
        busy = target_utilisation * hourly / hourly.max()
        nights = np.lib.stride_tricks.sliding_window_view(
            np.concatenate([busy, busy[: night_hours - 1]]), night_hours
        )
        found.append(
            IdleDay(
                swing=float(hourly.max() / hourly.min()),
                day_share=float(1 - busy.mean()),
                night_share=float(1 - nights.mean(axis=1).min()),
            )
        )
    return tuple(found)


def idle_table(
    names: Iterable[str], *, night_hours: int = 8, target_utilisation: float = 1.0
) -> pd.DataFrame:
    """Medians over the days of each profile.

    Returns: one row per profile: profile, days, swing (median), swing_low and swing_high (of single
             days), day_idle_share, night_idle_share (medians).
    Raises:  InputError: a name that is not in PROFILES.
    """
    rows = []
    for name in names:
        if name not in PROFILES:
            raise InputError(
                f"profile(={name!r}) is not known", remedy=f"Use one of {sorted(PROFILES)}."
            )
        days = idle_days(
            PROFILES[name], night_hours=night_hours, target_utilisation=target_utilisation
        )
        swings = [day.swing for day in days]
        rows.append(
            {
                "profile": name,
                "days": len(days),
                "swing": float(np.median(swings)),
                "swing_low": min(swings),
                "swing_high": max(swings),
                "day_idle_share": float(np.median([day.day_share for day in days])),
                "night_idle_share": float(np.median([day.night_share for day in days])),
            }
        )
    return pd.DataFrame(rows)


class IdleStudy(Value):
    """Is a fleet of a fixed size idle for most of the night? Asked of published profiles."""

    kind: Literal["idle-share"] = "idle-share"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    question: str
    claim: str
    """What is tested, as it was said."""
    profiles: tuple[str, ...] = Field(min_length=1)
    night_hours: int = Field(8, ge=1, le=_DAY_HOURS)
    target_utilisation: float = Field(1.0, gt=0, le=1)
    """Of the fleet in the busiest hour of the day it is sized for."""
    above: float = Field(0.6, gt=0, lt=1)
    """The idle share of the night that the claim names."""

    def table(self) -> pd.DataFrame:
        """`idle_table` with a column `holds`: whether the median night is idle for more than that.

        The idlest come first.
        """
        table = idle_table(
            self.profiles,
            night_hours=self.night_hours,
            target_utilisation=self.target_utilisation,
        )
        table["holds"] = table["night_idle_share"] > self.above
        return table.sort_values("night_idle_share", ascending=False, ignore_index=True)

    def answer(self) -> str:
        """In words, by profile."""
        table = self.table()
        parts = []
        for holds, verb in ((True, "It holds"), (False, "It does not hold")):
            rows = table[table["holds"] == holds]
            shares = ", ".join(
                f"{name} ({share:.0%})"
                for name, share in zip(rows["profile"], rows["night_idle_share"], strict=True)
            )
            if shares:
                parts.append(f"{verb} for {shares}.")
        return " ".join(parts)
