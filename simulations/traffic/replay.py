"""A recorded trace as arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field

from simulations.traffic.files import digest
from simulations.traffic.finite import Finite
from simulations.traffic.formats import read_trace
from simulations.traffic.trace import Trace


class Replay(Finite):
    """A recorded trace with its own time stamps; lengths are the trace's where none are given.

    Use `Replay.of`, which notes the digest of the file, so that a workload names its data exactly.
    """

    kind: Literal["replay"] = "replay"
    path: str
    format: str = "auto"
    """One of `formats.FORMATS`."""
    sha256: str | None = None
    """Checked when the trace is read; None takes whatever lies there."""
    start_s: float = Field(0.0, ge=0)
    """Begin of the window, in the trace's time."""
    length_s: float | None = Field(None, gt=0)
    """Length of the window, in the trace's time; None is all that follows."""
    speedup: float = Field(1.0, gt=0)
    """2 plays the trace in half its time."""
    keep_share: float = Field(1.0, gt=0, le=1)
    """Share of the requests that is kept, as bursty as all were, see `Trace.kept`."""
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
        window = whole.window(self.start_s, self.length_s)
        if self.keep_share < 1:
            window = window.kept(self.keep_share, np.random.default_rng([seed, 6]))
        return window.played(
            self.speedup, self.length_divisor, self.max_prompt_tokens, self.max_output_tokens
        )
