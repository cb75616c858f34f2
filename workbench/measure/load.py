"""One load from as many client processes as it takes: one schedule, one clock, one merged result.

The client runs in processes of its own, so that neither a notebook's event loop nor a progress bar
delays a send, and ahead of other processes where the system permits it (as root, or with
CAP_SYS_NICE).
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import ceil
from multiprocessing.connection import wait
from typing import Any

from workbench.apart import Child, Link
from workbench.measure.client import local, send_all
from workbench.measure.engine import OnProgress
from workbench.measure.outcome import Outcome, Request

SENDS_PER_S = 1_000.0
CHUNKS_PER_S = 10_000.0
"""What one process is given: half of what one core was seen to do (benchmarks/client.py)."""
_TOKENS_PER_S_OF_A_STREAM = 200.0
_LEAD_S = 0.05
"""Between the word to start and the first send."""
_FIRST_IN_LINE = -20
"""The highest priority of an ordinary process. A real-time one would push the engine off its core
even where another core is idle, and slow what it measures (seen: 15 % more time per token)."""


@dataclass(frozen=True)
class Load:
    """What came of a load, and how the client fared.

    Attributes:
        start_s: of the run, on the system's monotonic clock.
        lag_p99_s: how late the worst process got to what was due (sends and reads alike).
        cpu_share: of one core that the busiest process used, 0 to 1.
    """

    start_s: float
    outcomes: list[Outcome]
    processes: int
    lag_p99_s: float
    cpu_share: float

    def report(self) -> dict[str, float]:
        """How the client fared, as numbers to keep."""
        return {
            "processes": float(self.processes),
            "lag_p99_s": self.lag_p99_s,
            "cpu_share": self.cpu_share,
        }


def send(
    url: str,
    model: str,
    requests: Sequence[Request],
    *,
    concurrency: int | None = None,
    processes: int | None = None,
    timeout_s: float = 600.0,
    on_progress: OnProgress | None = None,
) -> Load:
    """Send requests to `url`/v1/completions from client processes, and wait for all answers.

    Args:    concurrency: a closed loop; None sends each request when it is scheduled.
             processes: None takes as many as the load needs, at most one per core.
    Raises:  EngineError: a client process died.
    """
    parts = _parts(requests, processes or _needed(requests, concurrency))
    outcomes = [Outcome.of(i, request) for i, request in enumerate(requests)]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                Child(
                    serve_part,
                    url,
                    model,
                    local(requests, part),
                    concurrency and _share(concurrency, k, len(parts)),
                    timeout_s,
                )
            )
            for k, part in enumerate(parts)
        ]
        for child in children:
            child.receive()  # it is ready
        start_s = time.monotonic() + _LEAD_S
        for child in children:
            child.send(start_s)
        found = _collect(children, len(requests), on_progress)
    for part, (mine, _, _) in zip(parts, found, strict=True):
        for i, outcome in zip(part, mine, strict=True):
            outcome.request_id = i
            outcomes[i] = outcome
    return Load(
        start_s=start_s,
        outcomes=outcomes,
        processes=len(parts),
        lag_p99_s=max(lag_s for _, lag_s, _ in found),
        cpu_share=max(share for _, _, share in found),
    )


def _collect(
    children: Sequence[Child], total: int, on_progress: OnProgress | None
) -> list[tuple[list[Outcome], float, float]]:
    """What each child found, in their order; progress is the sum of theirs."""
    answered = [0] * len(children)
    found: dict[int, tuple[list[Outcome], float, float]] = {}
    open_ = {child.connection: k for k, child in enumerate(children)}
    while open_:
        for connection in wait(list(open_)):
            k = open_[connection]  # type: ignore[index]
            ended, message = children[k].receive()
            if ended:
                del open_[connection]  # type: ignore[arg-type]
            elif isinstance(message, int):
                answered[k] = message
                if on_progress is not None:
                    done = sum(answered)
                    on_progress(f"{done} of {total} requests answered", done / total)
            else:
                found[k] = message
    return [found[k] for k in range(len(children))]


def serve_part(
    link: Link,
    url: str,
    model: str,
    requests: Sequence[Request],
    concurrency: int | None,
    timeout_s: float,
) -> None:
    """The work of one client process."""
    lags: list[float] = []
    began: list[float] = []

    def start() -> float:
        link.send("ready")
        at: float = link.receive()
        _undisturbed()
        began.extend((time.monotonic(), time.process_time()))
        return at

    outcomes = _run(
        send_all(
            url,
            model,
            requests,
            start=start,
            concurrency=concurrency,
            timeout_s=timeout_s,
            tell=link.send,
            lags=lags,
        )
    )
    share = (time.process_time() - began[1]) / (time.monotonic() - began[0])
    lags.sort()
    link.send((outcomes, lags[int(0.99 * len(lags))] if lags else 0.0, share))


def _run(work: Any) -> list[Outcome]:
    """On uvloop, where it is: half the time per chunk of the standard loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def _undisturbed() -> None:
    """No collection of garbage, and no waiting behind other processes, while it counts."""
    gc.collect()
    gc.freeze()
    gc.disable()
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _FIRST_IN_LINE)


def _needed(requests: Sequence[Request], concurrency: int | None) -> int:
    """Processes for a load: by sends and by tokens a second, each token a chunk of its own."""
    tokens = sum(request.output_tokens for request in requests)
    if concurrency:
        per_s = concurrency * _TOKENS_PER_S_OF_A_STREAM
        work = per_s / CHUNKS_PER_S + per_s * len(requests) / max(tokens, 1) / SENDS_PER_S
    else:
        first_s = min(request.scheduled_s for request in requests)
        span_s = max(1.0, max(request.scheduled_s for request in requests) - first_s)
        work = (tokens / CHUNKS_PER_S + len(requests) / SENDS_PER_S) / span_s
    cores = len(os.sched_getaffinity(0))
    return max(1, min(ceil(work), cores, concurrency or len(requests)))


def _parts(requests: Sequence[Request], n: int) -> list[list[int]]:
    """Positions of each process's requests: dealt out in order of time, a conversation together."""
    root: dict[int, int] = {}
    firsts = [i for i, request in enumerate(requests) if request.after is None]
    for k, i in enumerate(sorted(firsts, key=lambda i: requests[i].scheduled_s)):
        root[i] = k % n
    parts: list[list[int]] = [[] for _ in range(n)]
    for i, request in enumerate(requests):
        if request.after is not None:
            root[i] = root[request.after]
        parts[root[i]].append(i)
    return [part for part in parts if part]


def _share(total: int, k: int, n: int) -> int:
    """The k-th of n nearly equal parts of a total."""
    return total // n + (k < total % n)
