"""What the autoscaler can be told to look at: each metric's name and its PromQL, in one place.

The bundle's adapter rules ask Prometheus these expressions, and the simulated fleet evaluates the same
ones, over samples that are as old and as far apart.

| name | per pod | as External or Object |
|---|---|---|
| vllm_num_requests_running, _waiting | now | sum |
| vllm_kv_cache_usage_perc | now, 0 to 1 | mean |
| DCGM_FI_DEV_GPU_UTIL | 0 to 100, busy with anything; 0 while weights load | mean |
| vllm_ttft_mean_seconds, vllm_e2e_mean_seconds | of the last minute; none of nothing | over all pods |
| vllm_ttft_p99_seconds, vllm_e2e_p99_seconds | of five minutes, by vLLM's buckets | over all pods |
| vllm_requests_per_second | finished in the last minute | sum |

Requests that wait at the gateway are in no metric of vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from serving import promql
from serving.hpa.names import (
    E2E_MEAN,
    E2E_P99,
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_PER_SECOND,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    TTFT_P99,
)
from serving.promql import Aggregate, Compute, Expression, Quantile, Rate, Series

SCRAPE_INTERVAL_S = 15
"""What the bundle asks of Prometheus, for scrapes and rules; a rate() needs two samples in its window."""
MEAN_WINDOW_S = 60
LONG_WINDOW_S = 300
"""For percentiles, which need more requests, and for alerts."""

RUNNING = Series("vllm:num_requests_running")
WAITING = Series("vllm:num_requests_waiting")
KV_USAGE = Series("vllm:kv_cache_usage_perc")
GPU_BUSY = Series(GPU_UTILISATION)
FINISHED = Series("vllm:request_success_total")
TTFT = "vllm:time_to_first_token_seconds"
E2E = "vllm:e2e_request_latency_seconds"


@dataclass(frozen=True)
class Signal:
    """A metric that an autoscaler reads: as a Pods metric, and as one value over all pods."""

    name: str
    per_pod: Expression
    total: Expression

    @cached_property
    def source(self) -> str:
        """The metric by which the adapter discovers it."""
        return promql.metrics(self.per_pod)[0]


def mean(histogram: str, by: tuple[str, ...] = ()) -> Expression:
    """Mean of what a histogram observed in the last minute; nothing where that was nothing."""
    sums, counts = (
        Aggregate("sum", Rate(Series(f"{histogram}_{part}"), MEAN_WINDOW_S), by)
        for part in ("sum", "count")
    )
    return Compute(sums, "/", Compute(counts, ">", 0))


def quantile(share: float, histogram: str, by: tuple[str, ...] = ()) -> Expression:
    """A quantile of what a histogram observed in five minutes; NaN where that was nothing."""
    buckets = Rate(Series(f"{histogram}_bucket"), LONG_WINDOW_S)
    return Quantile(share, Aggregate("sum", buckets, (*by, "le")))


def _summed(name: str, of: Expression) -> Signal:
    return Signal(name, Aggregate("sum", of, ("pod",)), Aggregate("sum", of))


def _averaged(name: str, of: Expression) -> Signal:
    return Signal(name, Aggregate("avg", of, ("pod",)), Aggregate("avg", of))


_SIGNALS = (
    _summed(REQUESTS_RUNNING, RUNNING),
    _summed(REQUESTS_WAITING, WAITING),
    _averaged(KV_CACHE_USAGE, KV_USAGE),
    _averaged(GPU_UTILISATION, GPU_BUSY),
    Signal(TTFT_MEAN, mean(TTFT, ("pod",)), mean(TTFT)),
    Signal(TTFT_P99, quantile(0.99, TTFT, ("pod",)), quantile(0.99, TTFT)),
    Signal(E2E_MEAN, mean(E2E, ("pod",)), mean(E2E)),
    Signal(E2E_P99, quantile(0.99, E2E, ("pod",)), quantile(0.99, E2E)),
    _summed(REQUESTS_PER_SECOND, Rate(FINISHED, MEAN_WINDOW_S)),
)
SIGNALS = {signal.name: signal for signal in _SIGNALS}
