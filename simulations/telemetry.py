"""What the autoscaler can see of the pods: gauges and rates as they are scraped, some time later.

| metric | per pod | as External or Object |
|---|---|---|
| DCGM_FI_DEV_GPU_UTIL | 0 to 100, busy share since the last scrape; 0 while weights load | mean |
| vllm_num_requests_running, _waiting | now | sum |
| vllm_kv_cache_usage_perc | 0 to 1, now | mean |
| vllm_ttft_mean_seconds | first tokens of the last minute; none: no value | over all pods |

A pod whose server does not answer yet has no vLLM metrics: the autoscaler counts it as missing.
Requests that wait at the gateway are in no vLLM metric.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from serving import hpa
from serving.errors import InputError
from simulations.engine import Reading

TTFT_WINDOW_S = 60.0
METRICS = (
    hpa.GPU_UTILISATION,
    hpa.REQUESTS_RUNNING,
    hpa.REQUESTS_WAITING,
    hpa.KV_CACHE_USAGE,
    hpa.TTFT_MEAN,
)
_SUMMED = (hpa.REQUESTS_RUNNING, hpa.REQUESTS_WAITING)


@dataclass(frozen=True)
class Scrape:
    """What one round of scraping found."""

    at_s: float
    readings: Mapping[int, Reading]
    """By pod number; only of pods whose server answers."""
    utilisation: Mapping[int, float]
    """0 to 1, of every pod that holds a GPU and runs."""


class Telemetry:
    """Scrapes of the last minutes; `delay_s` after a scrape the autoscaler sees it."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._scrapes: deque[Scrape] = deque()

    def scrape(
        self, now_s: float, readings: Mapping[int, Reading], loading: Iterable[int]
    ) -> Scrape:
        """Keep one round.

        Args:    readings: by pod number, of the pods whose server answers.
                 loading: pods that run and do not answer yet.
        """
        before = self._scrapes[-1] if self._scrapes else None
        utilisation = dict.fromkeys(loading, 0.0)
        for pod, reading in readings.items():
            busy_s, since_s = reading.busy_s, reading.started_s
            if before is not None and pod in before.readings:
                busy_s -= before.readings[pod].busy_s
                since_s = before.at_s
            elapsed_s = now_s - since_s
            utilisation[pod] = min(1.0, busy_s / elapsed_s) if elapsed_s > 0 else 0.0
        found = Scrape(now_s, dict(readings), utilisation)
        self._scrapes.append(found)
        # The oldest that may still be needed: a TTFT window before the oldest visible one.
        while len(self._scrapes) > 2 and (
            self._scrapes[1].at_s < now_s - self._delay_s - 2 * TTFT_WINDOW_S
        ):
            self._scrapes.popleft()
        return found

    def visible(self, metric: str, now_s: float) -> dict[int, float]:
        """The metric by pod number, as the autoscaler reads it now; pods without a value left out.

        Raises:  InputError: a metric that the twin does not know.
        """
        seen = [scrape for scrape in self._scrapes if scrape.at_s <= now_s - self._delay_s]
        if metric not in METRICS:
            raise InputError(
                f"metric(={metric!r}) is not simulated", remedy=f"Use one of {', '.join(METRICS)}."
            )
        if not seen:
            return {}
        last = seen[-1]
        if metric == hpa.GPU_UTILISATION:
            return {pod: 100 * share for pod, share in last.utilisation.items()}
        if metric == hpa.TTFT_MEAN:
            sums = self._first_tokens(seen)
            return {pod: total / count for pod, (total, count) in sums.items() if count > 0}
        attribute = {
            hpa.REQUESTS_RUNNING: "running",
            hpa.REQUESTS_WAITING: "waiting",
            hpa.KV_CACHE_USAGE: "kv_usage",
        }[metric]
        return {pod: float(getattr(r, attribute)) for pod, r in last.readings.items()}

    def over_all(self, metric: str, pods: Iterable[int], now_s: float) -> float | None:
        """The metric as one value over some pods, as an External or Object metric would be."""
        chosen = set(pods)
        values = {pod: v for pod, v in self.visible(metric, now_s).items() if pod in chosen}
        if not values:
            return 0.0 if metric in _SUMMED else None
        if metric in _SUMMED:
            return sum(values.values())
        if metric == hpa.TTFT_MEAN:
            seen = [scrape for scrape in self._scrapes if scrape.at_s <= now_s - self._delay_s]
            sums = [s for pod, s in self._first_tokens(seen).items() if pod in chosen]
            return sum(total for total, _ in sums) / sum(count for _, count in sums)
        return float(np.mean(list(values.values())))

    def _first_tokens(self, seen: list[Scrape]) -> dict[int, tuple[float, int]]:
        """TTFT sum and count of each pod over the last minute before the last scrape seen."""
        last = seen[-1]
        window = [s for s in seen if s.at_s >= last.at_s - TTFT_WINDOW_S - 1e-9]
        if len(window) == 1:
            window = seen[-2:]  # scraped less than once a window
        found: dict[int, tuple[float, int]] = {}
        for pod, reading in last.readings.items():
            # A pod younger than the window counts from its start, where both are 0.
            then = window[0].readings.get(pod) if len(window) > 1 else None
            sum_s, count = (then.ttft_sum_s, then.ttft_count) if then is not None else (0.0, 0)
            found[pod] = (reading.ttft_sum_s - sum_s, reading.ttft_count - count)
        return found
