"""The seam to the data plane: what a fleet asks of the replicas under it.

`simulations.engine.DataPlane` is one; tests have a plain one, which answers by hand arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from simulations.engine import Reading
from simulations.traffic import FloatArray, IntArray


class Plane(Protocol):
    """Requests and replicas, moved on from one control event to the next. A replica is a row."""

    now_s: float

    @property
    def requests(self) -> Any:
        """A record of every request."""
        ...

    @property
    def asked_s(self) -> FloatArray:
        """When each was sent first."""
        ...

    @property
    def arrived(self) -> int:
        """Requests that have arrived so far."""
        ...

    @property
    def at_gateway(self) -> int:
        """Requests that wait for a replica."""
        ...

    def add(self, *, slowdown: float = 1.0, error_share: float = 0.0, version: int = 0) -> int:
        """A new, empty replica: its row."""
        ...

    def remove(self, row: int) -> Reading:
        """Take an idle replica away; its last reading."""
        ...

    def fail(self, row: int) -> Reading:
        """The replica dies with what it holds; its last reading."""
        ...

    def advance(
        self,
        until_s: float,
        serving: Sequence[int],
        canary: Sequence[int] = (),
        canary_share: float = 0.0,
    ) -> None:
        """Route what arrives before `until`, and run all replicas up to it."""
        ...

    def outstanding(self, row: int) -> int:
        """Requests that the replica holds."""
        ...

    def quiet_until_s(self, row: int) -> float:
        """No request of the replica ends before this."""
        ...

    def read(self, row: int) -> Reading:
        """A replica's gauges and counters now."""
        ...

    def gauges(self, rows: Sequence[int]) -> FloatArray:
        """float array (rows, 3): requests running and waiting, and KV usage, of each now."""
        ...

    def totals(self, rows: Sequence[int], names: Sequence[str]) -> FloatArray:
        """float array (rows, names): counters of each by their names in `Reading`, now."""
        ...

    def histograms(self, rows: Sequence[int]) -> Mapping[str, IntArray]:
        """By name, int array (rows, buckets): observations of each, now."""
        ...

    def busy(self, rows: Sequence[int]) -> list[tuple[float, float]]:
        """Seconds that each has been busy until now, and when it started."""
        ...
