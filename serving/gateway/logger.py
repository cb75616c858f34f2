"""What the gateway tells its log of requests and changes of state; logs.py writes the lines."""

from __future__ import annotations

from typing import Any

import structlog

from serving.gateway.asks import PATHS, Ask
from serving.gateway.logs import configure, log_request, request_logger
from serving.gateway.traceparent import TraceParent

__all__ = ["Logger", "configure", "logger", "traceparent"]


def logger() -> Any:
    """For changes of state."""
    return structlog.get_logger()


class Logger:
    """For requests; made once `configure` has run."""

    def __init__(self) -> None:
        self._log = request_logger()

    def request(
        self,
        ask: Ask,
        *,
        status: int,
        duration_s: float,
        track: str,
        replica: str | None,
        cache: str | None,
        ttft_s: float | None,
        tokens: int | None,
        error: BaseException | None,
    ) -> None:
        """One that has ended."""
        labels = {"track": track, "replica": replica, "cache": cache}
        log_request(
            self._log,
            trace=TraceParent.parse(ask.trace) or TraceParent.new(),
            method="POST",
            path=PATHS[ask.route],
            status=status,
            duration_s=duration_s,
            user=ask.user,
            tenant=ask.tenant,
            labels={name: value for name, value in labels.items() if value},
            error=error,
            prompt=words(ask.body),
            extra={
                "http.request.id": ask.request_id,
                "numeric_labels.ttft_s": ttft_s,
                "gen_ai.usage.output_tokens": tokens,
            },
        )


def words(body: dict[str, Any]) -> list[str]:
    """What was written in each message, or as the prompt."""
    if "messages" not in body:
        return [str(body.get("prompt", ""))]
    return [str(message.get("content", "")) for message in body["messages"]]


def traceparent(given: str | None) -> str:
    """A trace to go on with."""
    return str(TraceParent.serve(given))
