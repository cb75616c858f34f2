"""What becomes of a question, and who is told of it at its end: metrics, rollout, log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.gateway.asks import Ask
from serving.gateway.logger import Logger
from serving.gateway.metrics import Metrics


class Traffic(Protocol):
    """What a rollout says of a request, and is told of it."""

    def track_of(self, owner: str) -> str: ...

    @property
    def stable(self) -> str: ...

    def record(
        self,
        track: str,
        owner: str,
        *,
        failed: bool,
        timed_out: bool,
        ttft_s: float | None,
        tpot_s: float | None,
        e2e_s: float,
    ) -> None: ...


@dataclass(slots=True)
class Course:
    """What became of a question so far; logged and counted at its end."""

    ask: Ask
    track: str = ""
    replica: str = ""
    cache: str = "bypass"
    answer_key: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The client's own messages."""
    citations: list[dict[str, Any]] = field(default_factory=list)
    first_s: float | None = None
    usage: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Every question that is begun is ended once."""

    def __init__(self, metrics: Metrics, traffic: Traffic, log: Logger) -> None:
        self._metrics = metrics
        self._traffic = traffic
        self._log = log
        self._begun = 0
        """And not yet ended."""
        metrics.in_flight.set_function(lambda: self._begun)

    def begin(self, ask: Ask) -> Course:
        """A question has come."""
        self._begun += 1
        return Course(ask, asked=ask.messages)

    def end(self, course: Course, status: int, error: Exception | None = None) -> None:
        """Count and log what became of the question."""
        ask, metrics, track = course.ask, self._metrics, course.track or "none"
        self._begun -= 1
        whole_s = time.monotonic() - ask.began_s
        tokens = course.usage.get("completion_tokens")
        tpot_s = None
        if tokens and tokens > 1 and course.first_s is not None:
            tpot_s = (whole_s - course.first_s) / (tokens - 1)
        metrics.requests.labels(ask.route, status, track).inc()
        if status == 200:
            metrics.duration.labels(track).observe(whole_s)
            if ask.stream and course.first_s is not None:
                metrics.ttft.labels(track).observe(course.first_s)
                if tpot_s is not None:
                    metrics.tpot.labels(track).observe(tpot_s)
            if tokens:
                metrics.tokens.labels("completion").inc(tokens)
                metrics.tokens.labels("prompt").inc(course.usage.get("prompt_tokens", 0))
        elif status == 504:
            metrics.timeouts.labels(track).inc()
        elif status == 499:
            metrics.aborted.labels(track).inc()
        if course.track and course.track != "cache" and (status == 200 or status >= 500):
            self._traffic.record(
                course.track,
                ask.owner,
                failed=status != 200,
                timed_out=status == 504,
                ttft_s=course.first_s if ask.stream else None,
                tpot_s=tpot_s if ask.stream else None,
                e2e_s=whole_s,
            )
        self._log.request(
            ask,
            status=status,
            duration_s=whole_s,
            track=track,
            replica=course.replica,
            cache=course.cache,
            ttft_s=course.first_s,
            tokens=tokens,
            error=error,
        )
