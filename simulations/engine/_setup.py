"""The records of a run before anything has happened, and the options and models as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.gateway.spec import BALANCING, GatewaySpec
from simulations.engine._state import (
    BLOCK,
    FLIGHT,
    NEVER,
    REPLICA,
    REQUEST,
    SLOT,
    STEP,
    Content,
    Follow,
    Gate,
    Int32Array,
    Limits,
    Outcomes,
    Records,
    Speed,
    State,
)
from simulations.engine.histograms import BUCKETS_S
from simulations.engine.options import SchedulerOptions
from simulations.latency import LatencyModel
from simulations.traffic import Clients, Schedule
from simulations.traffic.segments import shared_tokens

_CHUNK = 10_000
"""Requests that are made at a time: their records stay in the processor's cache."""
_PER_REPLICA = (
    *("replicas", "slots", "finish", "phase_count", "flights", "news", "order"),
    *("table", "blocks", "lookup", "counts"),
)


def new_requests(schedule: Schedule) -> Records:
    """Requests of which nothing has happened yet; the schedule is copied."""
    requests = np.zeros(len(schedule), dtype=REQUEST)
    links = ("left", "right", "abandon_left", "abandon_right", "slot", "replica")
    blank = {"queued_s": np.nan, "abandon_s": NEVER, **dict.fromkeys(links, -1)}
    drawn = {
        "sent_s": schedule.arrived_at_s,
        "prompt": schedule.prompt_tokens,
        "output": schedule.output_tokens,
    }
    if schedule.priority is not None:
        drawn["priority"] = schedule.priority
    for first in range(0, len(requests), _CHUNK):
        made = requests[first : first + _CHUNK]
        for name, value in blank.items():
            made[name] = value
        for name, column in drawn.items():
            made[name] = column[first : first + _CHUNK]
    return requests


def new_outcomes(n: int) -> Outcomes:
    """Of requests of which nothing has happened yet."""
    first_s, end_s = (np.full(n, np.nan) for _ in range(2))
    preemptions, hit_tokens = (np.zeros(n, dtype=np.int32) for _ in range(2))
    return Outcomes(first_s, end_s, preemptions, hit_tokens)


def new_state(
    schedule: Schedule,
    limits: Limits,
    replicas: int,
    *,
    gateway: GatewaySpec | None = None,
    histograms: bool = False,
    seed: int = 0,
    concurrency: int | None = None,
    traced: tuple[int, int] = (0, 0),
) -> State:
    """Nothing has happened yet."""
    empty = np.zeros(0, dtype=np.int32)
    turn, think_s = empty, np.zeros(0)
    if concurrency is None and schedule.conversations:
        assert schedule.after is not None
        assert schedule.think_s is not None
        turn = np.full(len(schedule), -1, dtype=np.int32)
        later = np.flatnonzero(schedule.after >= 0)
        turn[schedule.after[later]] = later
        think_s = schedule.think_s
    n = len(schedule)
    first = n if concurrency is None else min(concurrency, n)
    longest = 1
    if limits.caching and n:
        longest = int((schedule.prompt_tokens + schedule.output_tokens).max()) // limits.block_size
    gate = gate_of(gateway or GatewaySpec(), schedule, histograms=histograms, seed=seed)
    content = content_of(schedule, caching=limits.caching)
    return State(
        requests=new_requests(schedule),
        outcomes=new_outcomes(n),
        **_rows(replicas, limits, longest + 1, gate.edges.shape),
        follow=Follow(turn, think_s, np.array([first, n]), np.full(1, -1, dtype=np.int32)),
        gate=gate,
        content=content,
        steps=np.zeros(traced[0], dtype=STEP),
        pairs=np.zeros((traced[1], 3), dtype=np.int32),
        traced=np.zeros(2, dtype=np.int64),
    )


def _rows(count: int, limits: Limits, longest: int, edges: tuple[int, ...]) -> dict[str, Any]:
    """Arrays of empty replicas."""
    replicas = np.zeros(count, dtype=REPLICA)
    for name in ("quiet_until_s", "follow_s"):
        replicas[name] = NEVER
    replicas["slowdown"] = 1.0
    for name in ("inbox_head", "inbox_tail", "waiting_head", "waiting_tail", "abandon_root"):
        replicas[name] = -1
    for name in ("first_slot", "last_slot"):
        replicas[name] = -1
    replicas["free_blocks"] = limits.usable_blocks
    slots = np.zeros((count, limits.max_seqs), dtype=SLOT)
    slots["after"] = np.append(np.arange(1, limits.max_seqs), -1)
    pool = limits.usable_blocks + 2 if limits.caching else 2
    blocks = np.zeros((count, pool), dtype=BLOCK)
    blocks["after"] = np.append(np.arange(1, pool), 0)  # unused, but for one run of all blocks
    blocks[:, 0]["before"] = blocks[:, 0]["after"] = 1
    blocks[:, 1]["before"] = blocks[:, 1]["after"] = 0
    blocks[:, 1]["run"] = limits.usable_blocks
    blocks[:, 0]["held"] = 2 if limits.caching else 0
    cells = 2 ** int(np.ceil(np.log2(2 * pool))) if limits.caching else 1
    whole = (count, limits.max_seqs)
    return {
        "replicas": replicas,
        "slots": slots,
        "finish": np.full((count, limits.ring), -1, dtype=np.int32),
        "phase_count": np.zeros((count, limits.block_size), dtype=np.int32),
        "flights": np.zeros((count, 2), dtype=FLIGHT),
        "news": np.zeros((count, 2, limits.max_seqs), dtype=np.int32),
        "order": np.zeros(whole, dtype=np.int32),
        "table": np.zeros((*whole, longest) if limits.caching else (count, 1, 1), dtype=np.int32),
        "blocks": blocks,
        "lookup": np.zeros((count, cells), dtype=np.int32),
        "counts": np.zeros((count, edges[0], edges[1] + 1), dtype=np.int64),
    }


def grown(state: State, limits: Limits) -> State:
    """Room for twice as many replicas; the new ones are empty."""
    count = len(state.replicas)
    more = _rows(count, limits, state.table.shape[2], state.gate.edges.shape)
    return state._replace(
        **{name: np.concatenate([getattr(state, name), more[name]]) for name in _PER_REPLICA}
    )


def emptied(state: State, limits: Limits, row: int) -> None:
    """A row as if it had never been used."""
    fresh = _rows(1, limits, state.table.shape[2], state.gate.edges.shape)
    for name in _PER_REPLICA:
        getattr(state, name)[row] = fresh[name][0]


def gate_of(gateway: GatewaySpec, schedule: Schedule, *, histograms: bool, seed: int) -> Gate:
    """The gateway as the compiled core wants it, with nothing in its cache."""
    n = len(schedule)
    none = np.zeros(0, dtype=np.int32)
    clients = schedule.clients or Clients(timeout_s=None, max_retries=0)
    cache = gateway.result_cache
    key = none if schedule.key is None or cache is None else schedule.key.astype(np.int32)
    keys = int(key.max(initial=-1)) + 1
    edges = np.zeros((0, 0))
    if histograms:
        edges = np.full((len(BUCKETS_S), max(map(len, BUCKETS_S.values()))), np.inf)
        for row, bounds in zip(edges, BUCKETS_S.values(), strict=True):
            row[: len(bounds)] = bounds
    return Gate(
        policy=BALANCING.index(gateway.balancing),
        most=-1 if gateway.max_outstanding is None else gateway.max_outstanding,
        retries=clients.max_retries,
        timeout_s=NEVER if clients.timeout_s is None else clients.timeout_s,
        backoff_s=clients.backoff_s,
        longest_backoff_s=clients.max_backoff_s,
        jitter=clients.jitter,
        patience_s=np.zeros(0) if schedule.patience_s is None else schedule.patience_s,
        cache_size=cache.size if cache is not None and keys else 0,
        cache_ttl_s=cache.ttl_s if cache is not None else 0.0,
        cache_s=cache.answer_s if cache is not None else 0.0,
        seed=seed,
        key=key,
        conversation=_conversations(schedule),
        prefix=_prefixes(schedule) if gateway.balancing == "prefix_hash" else none,
        asked_s=np.full(n if clients.max_retries else 0, np.nan),
        stored_s=np.full(keys, -NEVER),
        newer=np.full(keys, -1, dtype=np.int32),
        older=np.full(keys, -1, dtype=np.int32),
        ends=np.array([-1, -1, 0], dtype=np.int32),
        edges=edges,
    )


def _conversations(schedule: Schedule) -> Int32Array:
    """A number for each one's conversation; () where all are alone."""
    if schedule.conversation is not None:
        return schedule.conversation.astype(np.int32)
    return np.zeros(0, dtype=np.int32)


def _prefixes(schedule: Schedule) -> Int32Array:
    """A number for what each prompt begins with: its first segment, or the request itself."""
    if schedule.segments is None:
        return np.arange(len(schedule), dtype=np.int32)
    return schedule.segments.segment[schedule.segments.first[:-1]].astype(np.int32)


def content_of(schedule: Schedule, *, caching: bool) -> Content:
    """Segments of all prompts, and how much of each other requests may share."""
    none = np.zeros(0, dtype=np.int64)
    if not caching or schedule.segments is None:
        return Content(none, none, none.astype(np.int32), none.astype(np.int32))
    segments = schedule.segments
    return Content(
        segments.first,
        np.ascontiguousarray(segments.segment),
        np.ascontiguousarray(segments.tokens),
        shared_tokens(segments, schedule.output_tokens),
    )


def speed_of(
    latency: LatencyModel, max_seqs: int, *, noise: bool = True, step_times_s: Any = ()
) -> Speed:
    """The coefficients as the compiled core wants them."""
    padded = np.arange(max_seqs + 1, dtype=np.int32)
    sizes = np.array(latency.pad_to_tokens, dtype=np.int32)
    if len(sizes):
        rounded = sizes[np.minimum(np.searchsorted(sizes, padded), len(sizes) - 1)]
        padded = np.where(padded <= sizes[-1], rounded, padded).astype(np.int32)
    residuals = np.array(latency.residuals if noise else (), dtype=np.float64)
    given_s = np.array(step_times_s, dtype=np.float64)
    shortest_s = latency.base_s + max(latency.floor_s, latency.per_token_s)
    shortest_s = shortest_s * residuals.min(initial=1.0) + latency.step_overhead_s
    return Speed(
        base=latency.base_s,
        seq=latency.per_seq_s,
        floor=latency.floor_s,
        token=latency.per_token_s,
        kv_token=latency.per_kv_token_s,
        attention=latency.per_prefill_attention_s,
        prefill=latency.prefill_step_s,
        launch=latency.prefill_launch_s,
        launch_large=latency.uncaptured_launch_s,
        captured=latency.captured_tokens or np.iinfo(np.int32).max,
        overhead=latency.step_overhead_s,
        padded=padded,
        residuals=residuals,
        given_s=given_s,
        shortest=float(given_s.min()) if len(given_s) else shortest_s,
    )


def limits_of(options: SchedulerOptions, latency: LatencyModel, schedule: Schedule) -> Limits:
    """What one replica may do under a schedule."""
    outputs = schedule.output_tokens if len(schedule) else np.ones(1, dtype=np.int64)
    return Limits(
        max_seqs=options.max_seqs,
        max_step_tokens=options.max_step_tokens,
        usable_blocks=latency.kv_blocks - 1,  # vLLM keeps a null block
        block_size=options.block_size,
        cap=options.long_prefill_tokens,
        depth=2 if options.async_scheduling else 1,
        chunked=options.chunked_prefill,
        priority=options.priority,
        caching=options.prefix_caching,
        lone_uncapped=options.lone_prefill_uncapped,
        reserve_whole=options.reserve_whole_prompt,
        watermark=options.watermark_blocks,
        self_ends=options.self_preemption_ends_step or not options.priority,
        victim_skips=options.unscheduled_victim_skips_next,
        max_queued_requests=-1
        if options.max_queued_requests is None
        else options.max_queued_requests,
        max_queued_tokens=-1 if options.max_queued_tokens is None else options.max_queued_tokens,
        overhead_s=latency.request_overhead_s,
        response_s=latency.response_overhead_s,
        response_seq_s=latency.response_per_seq_s,
        min_output=int(outputs.min()),
        ring=int(outputs.max()) + 2,
    )
