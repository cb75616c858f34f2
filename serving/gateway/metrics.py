"""What Prometheus is told of the gateway: the article's table, and what its caches do.

| question | metric |
|---|---|
| mean and P99 latency | gateway_request_duration_seconds, gateway_time_to_first_token_seconds |
| errors, time-outs | gateway_requests_total{status}, gateway_timeouts_total |
| request volume | gateway_requests_total |
| returning users (retention) | gateway_sessions_total{user="returning"} over all |
| cache hits | gateway_answer_cache_total{result}, gateway_context_total{result} |
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

M = TypeVar("M", Counter, Histogram)
disable_created_metrics()  # type: ignore[no-untyped-call]

_FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
_WHOLE_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)
_TOKEN_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)


class Metrics:
    """One registry for each gateway, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests that have ended", "route status track")
        self.timeouts = self._counter("timeouts", "Requests whose model took too long", "track")
        self.retries = self._counter("retries", "Requests sent to another replica", "")
        self.aborted = self._counter("aborted", "Answers that their client gave up", "track")
        self.in_flight = self._gauge("requests_in_flight", "Requests being answered", "")
        self.tokens = self._counter("tokens", "Tokens as vLLM counts them", "kind")
        self.duration = self._histogram("request_duration_seconds", "Whole answer", _WHOLE_S)
        self.ttft = self._histogram("time_to_first_token_seconds", "First token", _FIRST_S)
        self.tpot = self._histogram("time_per_output_token_seconds", "Later tokens", _TOKEN_S)
        self.answers = self._counter("answer_cache", "hit, miss or bypass", "result")
        self.context = self._counter("context", "Turns found, new, dropped or down", "result")
        self.knowledge = self._counter("knowledge", "Questions looked up", "result")
        self.sessions = self._counter("sessions", "Begun after half an hour of silence", "user")
        self.refused = self._counter("refused", "Requests that were not sent to a model", "reason")
        self.websockets = self._gauge("websockets", "Open WebSockets", "")
        self.dependency = self._gauge("dependency_up", "1 while it answers", "name")
        self.replicas = self._gauge("replicas_up", "Replicas that take requests", "track")
        self.share = self._gauge("rollout_share", "Share of conversations sent to it", "track")
        self.rollbacks = self._counter("rollbacks", "Rollouts that were taken back", "")

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, says: str, labels: str) -> Counter:
        return _known(Counter(f"gateway_{name}", says, labels.split(), registry=self.registry))

    def _gauge(self, name: str, says: str, labels: str) -> Gauge:
        return Gauge(f"gateway_{name}", says, labels.split(), registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return _known(
            Histogram(f"gateway_{name}", says, ["track"], buckets=buckets, registry=self.registry)
        )


def _known(metric: M) -> M:
    """With its children kept: to look them up takes longer than to count."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]
    return metric
