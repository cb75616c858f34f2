"""A line for each request and each change of state."""

from __future__ import annotations

import secrets
from typing import Any

import structlog


def logger() -> Any:
    """For changes of state."""
    return structlog.get_logger()


class Logger:
    """For requests."""

    def request(self, ask: Any, **what: Any) -> None:
        """One that has ended."""


def configure(level: str, *, prompts: bool = False) -> None:
    """Set the level."""


def traceparent(given: str | None) -> str:
    """A trace to go on with."""
    return given or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
