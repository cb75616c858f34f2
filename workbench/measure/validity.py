"""The validity gate: reasons why a run must not be trusted.

Counted are the requests scheduled after the warm-up. The load is *on* from the end of the warm-up
(closed loop: from when every user has sent once) to the last send; what is answered later counts for
latency, and is the tail that a throughput over the load alone leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from simulations.traffic import ClosedLoop, Constant, Gamma, Poisson, Schedule, Workload

MIN_REQUESTS = 20
MAX_LATENESS_S = 5e-3
MAX_LATENESS_SHARE = 0.1
MAX_LAG_S = 10e-3
MIN_LOADS = 2.0
"""A load lasts at least so many times the median request."""
MAX_GROWTH = 0.1
MAX_PREEMPTED = 0.1
MAX_THROTTLED = 0.01
NOT_STEADY = "not steady"
ABOUT_THE_SERVER = (
    NOT_STEADY,
    "too short",
    "requests failed",
    "preemptions",
    "requests are too few",
)
"""Marks of the reasons that are a server's own doing (or a small sample), and no fault of the run."""


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at.

    Attributes:
        requests, steps: as in `Measurement`.
        server: requests came over HTTP, from a client that can be late.
        cached_tokens: prompt tokens that the prefix cache gave; None where nobody counted.
        reusable_tokens: prompt tokens that it can have given within the run itself.
        client, telemetry: as in `Measurement`, the latter summarised over the load.
    """

    requests: pd.DataFrame
    steps: pd.DataFrame
    workload: Workload
    server: bool
    cached_tokens: int | None = None
    reusable_tokens: int = 0
    client: Mapping[str, float] = field(default_factory=dict)
    telemetry: Mapping[str, float] = field(default_factory=dict)

    @property
    def counted(self) -> pd.DataFrame:
        return self.requests[self.requests["counted"]]

    @property
    def open_loop(self) -> bool:
        return not isinstance(self.workload.arrivals, ClosedLoop)


def doubts(evidence: Evidence) -> list[str]:
    """What speaks against a run, one line each; nothing if it can be trusted."""
    return [
        reason
        for rule in (
            _failed,
            _lengths,
            _few,
            _late,
            _behind,
            _steady,
            _cache,
            _preempted,
            _throttled,
        )
        for reason in rule(evidence)
    ]


def reusable_tokens(schedule: Schedule) -> int:
    """Prompt tokens that an unbounded prefix cache, empty at first, can give within the run.

    A prompt shares the leading segments that an earlier one began with; earlier answers of its own
    conversation are in the cache as well.
    """
    if schedule.segments is None:
        return 0
    seen: set[tuple[int, ...]] = set()
    total = 0
    for i in np.argsort(schedule.arrived_at_s, kind="stable"):
        chain: tuple[int, ...] = ()
        shared = True
        for segment, tokens in schedule.segments[i]:
            chain = (hash((chain, segment)),)
            shared = shared and (segment < 0 or chain in seen)
            total += tokens if shared else 0
            seen.add(chain)
    return total


def _failed(seen: Evidence) -> Iterator[str]:
    failed = seen.counted["error"].dropna()
    if len(failed):
        common = failed.mode().iloc[0]
        yield f"{len(failed)} of {len(seen.counted)} requests failed: {common}"


def _lengths(seen: Evidence) -> Iterator[str]:
    answered = seen.counted[seen.counted["error"].isna()]
    short = answered[answered["output_tokens"] != answered["asked_output_tokens"]]
    if len(short):
        first = short.iloc[0]
        yield (
            f"{len(short)} of {len(seen.counted)} requests came back with another length than asked"
            f" (the first: {first['output_tokens']} for {first['asked_output_tokens']} tokens)"
        )


def _few(seen: Evidence) -> Iterator[str]:
    n = len(seen.counted)
    if seen.server and n < MIN_REQUESTS:
        yield f"{n} requests are too few (at least {MIN_REQUESTS}): measure for longer"
    elif not n:
        yield "no request was counted"
    elif seen.server and seen.open_loop:
        on_s = float(np.ptp(seen.counted["scheduled_s"]))
        e2e_s = float((seen.counted["end_s"] - seen.counted["sent_s"]).median())
        if on_s < MIN_LOADS * e2e_s:
            yield (
                f"too short: {on_s:.1f} s of load for requests of {e2e_s:.1f} s:"
                f" measure for at least {MIN_LOADS * e2e_s + seen.workload.warmup_s:.0f} s"
            )


def _late(seen: Evidence) -> Iterator[str]:
    """An open loop that sends late measures the client. (Offline, requests wait for a step's end.)"""
    if not (seen.server and seen.open_loop):
        return
    lateness_s = (seen.counted["sent_s"] - seen.counted["scheduled_s"]).dropna().to_numpy()
    if len(lateness_s) < 2:
        return
    mean_gap_s = float(np.ptp(seen.counted["scheduled_s"].to_numpy())) / (len(seen.counted) - 1)
    p99_s = float(np.percentile(lateness_s, 99))
    if p99_s > max(MAX_LATENESS_S, MAX_LATENESS_SHARE * mean_gap_s):
        yield (
            f"the client sent late (p99 {p99_s * 1e3:.1f} ms, mean gap {mean_gap_s * 1e3:.1f} ms):"
            " the machine is busy with something else"
        )


def _behind(seen: Evidence) -> Iterator[str]:
    """A client that gets to what is due late reads late as well: its latencies are not the server's."""
    lag_s = seen.client.get("lag_p99_s", 0.0)
    if lag_s > MAX_LAG_S:
        yield (
            f"the client could not keep up (p99 {lag_s * 1e3:.1f} ms behind, at"
            f" {seen.client['cpu_share']:.0%} of a core): the machine is busy with something else,"
            " or the load needs more client processes"
        )


def _steady(seen: Evidence) -> Iterator[str]:
    """A server that falls behind has no latency of its own: it grows for as long as one measures."""
    if not (seen.server and isinstance(seen.workload.arrivals, Constant | Poisson | Gamma)):
        return
    table = seen.requests[seen.requests["error"].isna()]
    end_s = float(seen.counted["scheduled_s"].max())
    # By the middle the batch has filled: a load lasts twice as long as a request.
    begin_s = (seen.workload.warmup_s + end_s) / 2
    arrived = int(table["scheduled_s"].between(begin_s, end_s).sum())
    before, after = (
        int(((table["scheduled_s"] <= at_s) & (table["end_s"] > at_s)).sum())
        for at_s in (begin_s, end_s)
    )
    # What a queue gains by chance within n arrivals is of the order of sqrt(n).
    if after - before > max(MAX_GROWTH * arrived, 2 * np.sqrt(arrived)):
        yield (
            f"{NOT_STEADY}: requests in flight grew from {before} to {after} while {arrived} arrived:"
            " the server falls behind"
        )


def _cache(seen: Evidence) -> Iterator[str]:
    """What the run cannot have left in the cache itself was left there by an earlier one."""
    if seen.cached_tokens is not None and seen.cached_tokens > seen.reusable_tokens:
        yield (
            f"{seen.cached_tokens - seen.reusable_tokens} prompt tokens came from the prefix cache"
            " of an earlier run: change the seed"
        )


def _preempted(seen: Evidence) -> Iterator[str]:
    preempted = int(seen.steps["preempted"].sum()) if "preempted" in seen.steps else 0
    if preempted > MAX_PREEMPTED * max(len(seen.requests), 1):
        yield (
            f"{preempted} preemptions for {len(seen.requests)} requests: the KV cache is too small"
            " for max_num_seqs"
        )


def _throttled(seen: Evidence) -> Iterator[str]:
    share = seen.telemetry.get("throttled_share", 0.0)
    if share > MAX_THROTTLED:
        yield f"the GPU was throttled by heat or power for {share:.0%} of the run"
