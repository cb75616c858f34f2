"""What the chat can do without: asked with a time limit, left alone for a while where it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serving.gateway.logger import logger
from serving.gateway.metrics import Metrics

T = TypeVar("T")
_LATE = 3
"""Times in a row after which a dependency that is late counts as down."""


class Spare:
    """Guards one dependency; that it fails or answers again is logged once and is a metric.

    Args:    timeout_s: None where the dependency itself raises TimeoutError.
    """

    def __init__(
        self, name: str, metrics: Metrics, *, timeout_s: float | None = None, retry_s: float = 1.0
    ) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._gauge = metrics.dependency
        self._again_s = 0.0
        self._late = 0
        self.up: bool | None = None
        """None before it was first asked."""

    async def ask(self, what: Callable[[], Awaitable[T]]) -> T | None:
        """What it answers; None where it does not."""
        if self.up is False and time.monotonic() < self._again_s:
            return None
        try:
            if self._timeout_s is None:
                answer = await what()
            else:
                async with asyncio.timeout(self._timeout_s):
                    answer = await what()
        except TimeoutError as error:
            # Once may be this machine's own fault.
            self._late += 1
            if self._late >= _LATE:
                self._down(error)
            return None
        except Exception as error:  # whatever its client raises
            self._down(error)
            return None
        self._late = 0
        if not self.up:
            if self.up is False:
                logger().info("dependency is up", dependency=self.name)
            self.up = True
            self._gauge.labels(self.name).set(1)
        return answer

    def _down(self, error: Exception) -> None:
        self._again_s = time.monotonic() + self._retry_s
        if self.up is not False:
            self.up = False
            self._gauge.labels(self.name).set(0)
            logger().warning("dependency is down", dependency=self.name, reason=repr(error))
