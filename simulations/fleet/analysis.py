"""What versions have shown in the twin, for the rule that the gateway judges them by."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from serving.gateway.analysis import Latency, Served
from simulations.engine import Reading


def served(readings: Iterable[Reading], lost: int, latency: Latency) -> Served:
    """The sum over replicas of one version, and what those lost that died with requests."""
    answered, failed = 0, lost
    total_s = 0.0
    buckets: tuple[int, ...] = ()
    for reading in readings:
        answered += int(reading.finished)
        failed += int(reading.failed)
        total_s += float(getattr(reading, f"{latency}_sum_s"))
        shown = reading.histograms[latency].tolist()
        buckets = tuple(a + b for a, b in zip_longest(buckets, shown, fillvalue=0))
    return Served(answered, failed, total_s, buckets)
