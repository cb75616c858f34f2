"""The loop that drives an engine step by step: offline vLLM on real time, the fake on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import Protocol

from workbench.measure.engine import (
    OnProgress,
    Outcome,
    Request,
    Run,
    Step,
    requests_frame,
    steps_frame,
)


@dataclass(frozen=True)
class Produced:
    """What one step gave one request."""

    request_id: int
    tokens: int
    finished: bool


class Stepper(Protocol):
    """An engine that is advanced by its caller."""

    def now_s(self) -> float: ...

    def sleep_until(self, at_s: float) -> None: ...

    def add(self, request_id: int, request: Request) -> str | None:
        """Queue a request. Returns: why it was refused, or None."""
        ...

    def step(self) -> tuple[Step | None, list[Produced]]:
        """One engine step; its times are filled in by the loop. None: nothing was scheduled."""
        ...


def drive(
    stepper: Stepper,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    on_progress: OnProgress | None = None,
    sent_when_due: bool = False,
) -> Run:
    """Add requests when due (closed loop: when a place is free) and step until all are done.

    Order of ties: requests that are due at the same time are added in the given order, and before
    the next step begins.

    Args:    sent_when_due: in an open loop, requests that fall due within a step count as sent then
                 (a client of its own would have sent them) and not when the step ends.
    """
    outcomes = [Outcome.of(i, request) for i, request in enumerate(requests)]
    order = range(len(requests))
    due = deque(order if concurrency else sorted(order, key=lambda i: requests[i].scheduled_s))
    live: set[int] = set()
    steps: list[Step] = []
    start_s, previous_end_s, begun_s, done = stepper.now_s(), nan, nan, 0
    while due or live:
        now_s = stepper.now_s() - start_s
        while due and _may_go(requests[due[0]], now_s, len(live), concurrency):
            outcome = outcomes[due[0]]
            outcome.sent_s = stepper.now_s() - start_s
            if concurrency:
                outcome.scheduled_s = outcome.sent_s
            elif sent_when_due:
                outcome.sent_s = outcome.scheduled_s
            outcome.error = stepper.add(due[0], requests[due[0]])
            if outcome.error is None:
                live.add(due[0])
            due.popleft()
        if not live:
            if due and not concurrency:
                stepper.sleep_until(start_s + requests[due[0]].scheduled_s)
            continue
        # With async scheduling the first call only dispatches: its time belongs to the step to come.
        begun_s = stepper.now_s() - start_s if isnan(begun_s) else begun_s
        step, produced = stepper.step()
        end_s = stepper.now_s() - start_s
        for part in produced:
            if part.tokens:
                outcomes[part.request_id].chunk(end_s, part.tokens)
            if part.finished:
                live.discard(part.request_id)
                done += 1
        if step is not None:
            gap_s = begun_s - previous_end_s
            steps.append(replace(step, t_s=end_s, step_s=end_s - begun_s, gap_s=gap_s))
        if step is not None or not live:
            begun_s, previous_end_s = nan, end_s if live else nan
        if on_progress is not None:
            on_progress(f"{done} of {len(requests)} requests answered", done / len(requests))
    return Run(requests_frame(outcomes), steps_frame(steps))


def _may_go(request: Request, now_s: float, live: int, concurrency: int | None) -> bool:
    return live < concurrency if concurrency else request.scheduled_s <= now_s
