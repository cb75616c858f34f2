"""The loop that drives an engine step by step: offline vLLM on real time, the fake on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import isnan, nan
from typing import Protocol

from workbench.measure.client import NOT_SENT
from workbench.measure.engine import OnProgress, Run, Step, requests_frame, steps_frame
from workbench.measure.outcome import Outcome, Request


@dataclass(frozen=True)
class Produced:
    """What one step gave one request."""

    request_id: int
    token_ids: Sequence[int]
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
    the next step begins. A later turn is due `think_s` after the answer before it; in a closed loop
    its user waits for it, and has no other conversation meanwhile.

    Args:    sent_when_due: in an open loop, requests that fall due within a step count as sent then
                 (a client of its own would have sent them) and not when the step ends.
    """
    queue = _Queue(stepper, requests, concurrency, sent_when_due=sent_when_due)
    outcomes, live = queue.outcomes, queue.live
    steps: list[Step] = []
    previous_end_s, begun_s = nan, nan
    while queue.left():
        queue.add_due()
        if not live:
            queue.sleep()
            continue
        # With async scheduling the first call only dispatches: its time belongs to the step to come.
        begun_s = queue.now_s() if isnan(begun_s) else begun_s
        step, produced = stepper.step()
        end_s = queue.now_s()
        for part in produced:
            if part.token_ids:
                outcomes[part.request_id].chunk(end_s, len(part.token_ids))
            queue.produced(part)
        if step is not None:
            gap_s = begun_s - previous_end_s
            steps.append(replace(step, t_s=end_s, step_s=end_s - begun_s, gap_s=gap_s))
        if step is not None or not live:
            begun_s, previous_end_s = nan, end_s if live else nan
        if on_progress is not None:
            done = queue.done
            on_progress(f"{done} of {len(requests)} requests answered", done / len(requests))
    return Run(requests_frame(outcomes), steps_frame(steps), start_s=queue.start_s)


class _Queue:
    """Who is to be sent when: first turns as scheduled or as users are free, later ones as they follow.

    Attributes:
        live: requests that the engine has.
        done: how many are over.
    """

    def __init__(
        self,
        stepper: Stepper,
        requests: Sequence[Request],
        concurrency: int | None,
        *,
        sent_when_due: bool,
    ) -> None:
        self._stepper = stepper
        self._requests = requests
        self._concurrency = concurrency
        self._sent_when_due = sent_when_due and not concurrency
        self.outcomes = [Outcome.of(i, request) for i, request in enumerate(requests)]
        self.live: set[int] = set()
        self.done = 0
        self.start_s = stepper.now_s()
        first = [i for i, request in enumerate(requests) if request.after is None]
        if not concurrency:
            first.sort(key=lambda i: requests[i].scheduled_s)
        self._first = deque(first)
        self._later: list[tuple[float, int]] = []
        self._followers: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            if request.after is not None:
                self._followers.setdefault(request.after, []).append(i)
        self._answers: dict[int, list[int]] = {i: [] for i in self._followers}

    def now_s(self) -> float:
        return self._stepper.now_s() - self.start_s

    def left(self) -> bool:
        return bool(self._first or self._later or self.live)

    def add_due(self) -> None:
        now_s = self.now_s()
        while self._later and self._later[0][0] <= now_s:
            due_s, i = heappop(self._later)
            self.outcomes[i].scheduled_s = due_s
            self._add(i)
        while self._first and self._may_go(self._first[0], now_s):
            i = self._first.popleft()
            if self._concurrency:
                self.outcomes[i].scheduled_s = self.now_s()
            self._add(i)

    def sleep(self) -> None:
        """Until somebody is due, where nobody is served."""
        times_s = [due_s for due_s, _ in self._later[:1]]
        if self._first and not self._concurrency:
            times_s.append(self._requests[self._first[0]].scheduled_s)
        if times_s:
            self._stepper.sleep_until(self.start_s + min(times_s))

    def produced(self, part: Produced) -> None:
        if part.request_id in self._answers:
            self._answers[part.request_id] += part.token_ids
        if part.finished:
            self.live.discard(part.request_id)
            self.done += 1
            for i in self._followers.get(part.request_id, ()):
                due_s = self.outcomes[part.request_id].end_s + self._requests[i].think_s
                heappush(self._later, (due_s, i))

    def _may_go(self, i: int, now_s: float) -> bool:
        if self._concurrency:
            return len(self.live) + len(self._later) < self._concurrency
        return self._requests[i].scheduled_s <= now_s

    def _add(self, i: int) -> None:
        outcome, request = self.outcomes[i], self._requests[i]
        outcome.sent_s = outcome.scheduled_s if self._sent_when_due else self.now_s()
        if request.answers:
            prompt = list(request.prompt_token_ids)
            for at, answered in request.answers:
                prompt[at : at + len(self._answers[answered])] = self._answers[answered]
            request = replace(request, prompt_token_ids=prompt)
        outcome.error = self._stepper.add(i, request)
        if outcome.error is None:
            self.live.add(i)
        else:
            self._give_up(i)

    def _give_up(self, i: int) -> None:
        """Nothing follows a turn that was refused."""
        self.done += 1
        for follower in self._followers.get(i, ()):
            self.outcomes[follower].error = NOT_SENT
            self._give_up(follower)
