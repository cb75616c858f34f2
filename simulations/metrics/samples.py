"""The samples of the last minutes: one ring of rows per target, in flat arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """Per time and place: which samples of it lie in a range."""

    first: IntArray
    last: IntArray
    """int arrays (times, places): positions in the ring."""
    inside: Flags
    """bool array (times, places, keep)."""
    count: IntArray
    since_s: FloatArray
    until_s: FloatArray
    """float arrays (times,)."""


class Samples:
    """Rows of columns by target and time, as old as `keep` samples of the target.

    A target has a place while it has samples; a place that is free again is used again. Counters are
    kept a second time with what they lost when they were reset.

    Args:    counters: which columns are counters.
             keep: rows that are kept of each target, stale markers included.
             prometheus: major version; see `Pipeline`.
    """

    def __init__(self, counters: Flags, keep: int, *, prometheus: Literal[2, 3] = 3) -> None:
        self._counters, self._counts = counters, bool(counters.any())
        self._keep = keep
        self.prometheus = prometheus
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._written: list[int] = []
        self._at: IntArray = np.zeros(0, dtype=np.int64)
        """Targets that were written last, and their places."""
        self._grow(8)

    def _grow(self, count: int) -> None:
        had = len(self._free) + len(self._places)
        shape, columns = (count, self._keep), len(self._counters)
        self.times: FloatArray = _longer(had, np.full(shape, -np.inf), self, "times")
        """(places, keep): seconds; -inf where there is no sample."""
        self.live: Flags = _longer(had, np.zeros(shape, dtype=np.bool_), self, "live")
        """(places, keep): whether it is a sample; else a stale marker, or nothing."""
        self.raw: FloatArray = _longer(had, np.zeros((*shape, columns)), self, "raw")
        """(places, keep, columns): as scraped."""
        self.unreset: FloatArray = _longer(had, np.zeros((*shape, columns)), self, "unreset")
        """The same as if counters had never been reset; of a table without counters nothing."""
        self._next: IntArray = _longer(had, np.zeros(count, dtype=np.int64), self, "_next")
        self._lost: FloatArray = _longer(had, np.zeros((count, columns)), self, "_lost")
        self._seen: FloatArray = _longer(had, np.zeros((count, columns)), self, "_seen")
        """The last values."""
        self.target: IntArray = _longer(had, np.full(count, -1, dtype=np.int64), self, "target")
        """(places,): whose it is, -1 for free."""
        self._free += range(count - 1, had - 1, -1)

    def _place(self, target: int) -> int:
        if target not in self._places:
            if not self._free:
                self._grow(2 * len(self._places))
            place = self._free.pop()
            self._places[target] = place
            self.target[place] = target
        return self._places[target]

    def __contains__(self, target: int) -> bool:
        return target in self._places

    def write(self, at_s: float, targets: list[int], rows: FloatArray) -> None:
        """Samples of some targets at one time.

        A counter below its last value was reset: what it had is added to all that follow.

        Args:    rows: float array (targets, columns).
        Source:  Prometheus, promql/functions.go extrapolatedRate: counterCorrection.
        """
        if not targets:
            return
        if targets != self._written:  # mostly they are those of the scrape before
            found = [self._place(target) for target in targets]
            self._written, self._at = targets, np.array(found, dtype=np.int64)
        places = self._at
        at = self._next[places] % self._keep
        self.times[places, at] = at_s
        self.live[places, at] = True
        self.raw[places, at] = rows
        if self._counts:
            seen = self._seen[places]
            self._lost[places] += np.where(self._counters & (rows < seen), seen, 0.0)
            self._seen[places] = rows
            self.unreset[places, at] = rows + self._lost[places]
        self._next[places] += 1

    def mark_stale(self, at_s: float, target: int) -> None:
        """Its series end now; nothing where they have ended, or never began."""
        place = self._places.get(target)
        if place is None or not self.live[place, (self._next[place] - 1) % self._keep]:
            return
        at = self._next[place] % self._keep
        self.times[place, at], self.live[place, at] = at_s, False
        self._next[place] += 1

    def forget(self, target: int) -> None:
        """Drop what is left of a target."""
        place = self._places.pop(target)
        self._written = []
        self.times[place], self.live[place] = -np.inf, False
        self._next[place], self._lost[place], self._seen[place] = 0, 0.0, 0.0
        self.target[place] = -1
        self._free.append(place)

    def last(self, at_s: FloatArray, lookback_s: float) -> tuple[IntArray, Flags]:
        """Position of each place's last sample, and whether its series are there at those times.

        Args:    at_s: float array (times,).
        Returns: two arrays (times, places).
        Source:  Prometheus, promql/engine.go VectorSelector: the last sample within the lookback, if
                 it is no stale marker.
        """
        now_s = at_s[:, None, None]
        before = np.where(self.times <= now_s, self.times, -np.inf)
        position = before.argmax(axis=2)
        places = np.arange(len(self.times))
        # Where nothing was before, it is far too old or no sample.
        age_s = at_s[:, None] - self.times[places, position]
        young = age_s < lookback_s if self.prometheus >= 3 else age_s <= lookback_s
        return position, (age_s >= 0) & young & self.live[places, position]

    def between(self, since_s: FloatArray, until_s: FloatArray) -> Window:
        """The samples of a range at each of some times, without stale markers.

        Source:  Prometheus, "Range vector selectors": the beginning is left out since version 3.
        """
        begin_s, end_s = since_s[:, None, None], until_s[:, None, None]
        begun = self.times > begin_s if self.prometheus >= 3 else self.times >= begin_s
        inside = begun & (self.times <= end_s) & self.live
        first = np.where(inside, self.times, np.inf).argmin(axis=2)
        last = np.where(inside, self.times, -np.inf).argmax(axis=2)
        return Window(first, last, inside, inside.sum(axis=2), since_s, until_s)


def _longer(had: int, new: Any, samples: Samples, name: str) -> Any:
    """A longer array with what the old one held."""
    if had:
        new[:had] = getattr(samples, name)
    return new
