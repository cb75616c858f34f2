"""What the gateway tells its log of requests and changes of state; logs.py writes the lines."""

from __future__ import annotations

from typing import Any

import structlog

from serving.gateway.asks import PATHS, Ask
from serving.gateway.logs import configure, log_request, request_logger

__all__ = ["Logger", "configure", "logger"]


def logger() -> Any:
    """For changes of state."""
    return structlog.get_logger()


class Logger:
    """For requests; made once `configure` has run."""

    def __init__(self, *, prompts: bool) -> None:
        self._log = request_logger()
        self._prompts = prompts

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
            trace=ask.trace,
            method="POST",
            path=PATHS[ask.route],
            status=status,
            duration_s=duration_s,
            user=ask.user,
            tenant=ask.tenant,
            labels={name: value for name, value in labels.items() if value},
            error=error,
            # Of an error they are cut out.
            prompt=words(ask.body) if self._prompts or error is not None else None,
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
