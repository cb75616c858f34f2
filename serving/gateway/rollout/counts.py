"""What each track has shown: counted in memory per request, added up over gateways."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from serving.gateway.analysis import Latency, Served

BUCKETS_S: dict[Latency, tuple[float, ...]] = {
    "ttft": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
        *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    ),
    "tpot": (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
        *(10.0, 20.0, 40.0, 80.0),
    ),
    "e2e": (
        *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
        *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
    ),
}
"""Upper edges of vLLM's histograms, +Inf left out: the simulated fleet judges by the same.

Source:  vllm/v1/metrics/buckets.py, 0.32.
"""


def _no_sums() -> dict[Latency, float]:
    return dict.fromkeys(BUCKETS_S, 0.0)


def _no_buckets() -> dict[Latency, list[int]]:
    return {latency: [0] * (len(edges) + 1) for latency, edges in BUCKETS_S.items()}


@dataclass(slots=True)
class Counts:
    """Requests of one track since its period began. The one mutable value here: it is hot."""

    answered: int = 0
    failed: int = 0
    timed_out: int = 0
    """Of the failed."""
    sums_s: dict[Latency, float] = field(default_factory=_no_sums)
    buckets: dict[Latency, list[int]] = field(default_factory=_no_buckets)
    """Latencies of answered requests by bucket, not cumulated."""

    @classmethod
    def sum_of(cls, parts: Iterable[Counts]) -> Counts:
        total = cls()
        for part in parts:
            total.answered += part.answered
            total.failed += part.failed
            total.timed_out += part.timed_out
            for latency, counts in total.buckets.items():
                total.sums_s[latency] += part.sums_s[latency]
                for i, more in enumerate(part.buckets[latency]):
                    counts[i] += more
        return total

    def observe(self, latency: Latency, took_s: float) -> None:
        self.sums_s[latency] += took_s
        self.buckets[latency][bisect_left(BUCKETS_S[latency], took_s)] += 1

    @property
    def requests(self) -> int:
        return self.answered + self.failed

    @property
    def error_share(self) -> float | None:
        return self.failed / self.requests if self.requests else None

    def served(self, latency: Latency) -> Served:
        """As the rule wants it."""
        return Served(
            self.answered, self.failed, self.sums_s[latency], tuple(self.buckets[latency])
        )

    def mean_s(self, latency: Latency) -> float | None:
        n = sum(self.buckets[latency])
        return self.sums_s[latency] / n if n else None

    def quantile_s(self, latency: Latency, q: float) -> float | None:
        """Linear within the bucket that holds the rank, as Prometheus' histogram_quantile()."""
        edges, counts = BUCKETS_S[latency], self.buckets[latency]
        rank, below = q * sum(counts), 0
        for edge, lower, count in zip(edges, (0.0, *edges), counts, strict=False):
            if count and below + count >= rank:
                return lower + (edge - lower) * (rank - below) / count
            below += count
        return edges[-1] if sum(counts) else None
