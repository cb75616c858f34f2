"""What the compiled core works on: records of requests, replicas, running slots and KV blocks.

One `State` holds everything of a run. Lists inside the records are linked by index, -1 (of blocks
0, the null block) where they end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from simulations.engine.options import SchedulerOptions
from simulations.latency import LatencyModel
from simulations.traffic import Schedule

NEVER = np.inf
CORE = ("_state.py", "_lists.py", "_blocks.py", "_scheduler.py", "_replica.py", "_route.py")
DIGEST = hashlib.sha256(
    b"".join((Path(__file__).parent / name).read_bytes() for name in CORE)
).hexdigest()[:12]

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float64]
Int = Any
"""An integer of compiled code, of whatever width."""
Records = Any
"""A record array. (Field access by attribute has no static type.)"""


def compiled(function: Compiled) -> Compiled:
    """Compile on first use, to be called by compiled code."""
    return _compiled(function, from_python=False)


def entry(function: Compiled) -> Compiled:
    """The same, to be called by Python."""
    return _compiled(function, from_python=True)


def _compiled(function: Compiled, *, from_python: bool) -> Compiled:
    """The machine code is kept where NUMBA_CACHE_DIR says.

    numba notices that a function's own file changed, not that one it calls did: the digest of all
    of them in the name keeps a warm cache from serving old code. Nothing allocates, so that
    reference counts are left out; they and wrappers for Python are most of what compiling costs.
    """
    function.__qualname__ = f"{function.__name__}_{DIGEST}"
    return cast(
        Compiled,
        njit(
            cache=True,
            error_model="numpy",
            no_cpython_wrapper=not from_python,
            no_cfunc_wrapper=True,
            _nrt=False,
        )(function),
    )


YES: Any = np.bool_(True)
NO: Any = np.bool_(False)
"""Of a type, unlike True and False: a function is compiled once for both."""
COMING, INBOX, WAITING, RUNNING, DONE, ABORTED, REJECTED = range(7)
"""Status of a request: not sent yet, on its way to the queue, in it, running, and three ends."""
PREFILL, DECODE, STALLED, DRAINING = range(4)
"""Kind of a slot: computing what was there, one token a step, a decode that a step may leave out,
and one whose last token is in flight."""


REQUEST = np.dtype(
    [
        ("sent_s", np.float64),
        ("queued_s", np.float64),  # when it reaches the engine's queue
        ("first_s", np.float64),
        ("end_s", np.float64),
        ("abandon_s", np.float64),
        ("prompt", np.int32),
        ("output", np.int32),
        ("out", np.int32),  # output tokens that steps so far bring
        ("computed", np.int32),  # tokens in the KV cache with those steps, while it prefills
        ("left", np.int32),  # links of the list or heap that it is in
        ("right", np.int32),
        ("abandon_left", np.int32),
        ("abandon_right", np.int32),
        ("slot", np.int32),
        ("priority", np.int32),
        ("status", np.int32),
        ("preemptions", np.int32),
        ("hit_tokens", np.int32),
    ],
    align=True,
)

SLOT = np.dtype(
    [
        ("base", np.int64),  # DECODE: output tokens less the replica's rounds
        ("ticket", np.int64),  # order of admission: the order of the running list
        ("since", np.int64),  # first step without a gap that brought it a token
        ("last", np.int64),  # DRAINING: the step that brings the last one
        ("request", np.int32),
        ("kind", np.int32),
        ("tokens", np.int32),  # in the step that is being decided, where it is no DECODE
        ("cached", np.int32),  # tokens that were cached while it prefilled
        ("listed", np.int32),  # blocks that can be found
        ("before", np.int32),  # running list; `after` links free slots too
        ("after", np.int32),
        ("finish_before", np.int32),  # those that end with the same round
        ("finish_after", np.int32),
    ],
    align=True,
)

FLIGHT = np.dtype(
    [
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("busy_s", np.float64),
        ("count", np.int32),  # entries in `State.news`
        ("overlap", np.int32),  # the step before it was in flight when it was decided
    ],
    align=True,
)

BLOCK = np.dtype(
    [
        ("key", np.uint64),  # of all tokens up to its end; 0 of a run
        ("before", np.int32),  # free queue; `after` links unused nodes too
        ("after", np.int32),
        ("twin", np.int32),  # the next younger block of the same key
        ("held", np.int32),  # by so many requests; of the first node: the first unused one
        ("run", np.int32),  # so many free blocks that cannot be found
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        ("clock_s", np.float64),  # of the last decision or completion
        ("last_end_s", np.float64),  # end of the last step that was decided
        ("quiet_until_s", np.float64),  # no request leaves before this
        ("busy_s", np.float64),  # inside steps: what the device reports as busy
        ("active_s", np.float64),  # the same with the gaps between steps
        ("ttft_sum_s", np.float64),
        ("ttft_count", np.int64),
        ("seed", np.uint64),
        ("step", np.int64),  # steps that were decided
        ("updated", np.int64),  # steps that took effect
        ("rounds", np.int64),  # of decoding: each gives every DECODE slot a token
        ("scanned", np.int64),  # no DECODE slot ends with a round up to this one
        ("kv_tokens", np.int64),  # in the cache of the DECODE slots
        ("tickets", np.int64),
        ("unanswered_tokens", np.int64),  # prompt tokens of requests without a first token
        ("n_running", np.int32),
        ("n_decode", np.int32),
        ("n_prefill", np.int32),
        ("n_waiting", np.int32),
        ("n_inbox", np.int32),
        ("outstanding", np.int32),
        ("free_blocks", np.int32),
        ("inbox_head", np.int32),
        ("inbox_tail", np.int32),
        ("waiting_head", np.int32),  # or the root of its heap
        ("waiting_tail", np.int32),
        ("abandon_root", np.int32),
        ("first_slot", np.int32),  # running list
        ("last_slot", np.int32),
        ("free_slot", np.int32),
        ("preempted", np.int32),
        ("hit_tokens", np.int64),
        ("stuck", np.int32),  # the last decision was empty: it waits for a result
    ],
    align=True,
)

STEP = np.dtype(
    [
        ("decided_s", np.float64),
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("attention", np.float64),
        ("prefill_tokens", np.int32),
        ("prefill_seqs", np.int32),
        ("decode_seqs", np.int32),
        ("kv_tokens", np.int64),
        ("running", np.int32),
        ("waiting", np.int32),
        ("blocks_used", np.int32),
        ("preempted", np.int32),
        ("hit_tokens", np.int32),
    ],
    align=True,
)


class Speed(NamedTuple):
    """The coefficients of a LatencyModel, in seconds."""

    base: float
    seq: float
    floor: float
    token: float
    kv_token: float
    attention: float
    prefill: float
    overhead: float
    padded: Int32Array
    """(k,): tokens that a decode step of so many is computed for."""
    residuals: FloatArray
    """Factors on step times, of which each step draws one; () none."""
    given_s: FloatArray
    """Step times in order, instead of all that; () none."""
    shortest: float
    """No step with its gap is shorter."""


class Limits(NamedTuple):
    """What the scheduler may do: SchedulerOptions as numbers."""

    max_seqs: int
    max_step_tokens: int
    usable_blocks: int
    block_size: int
    cap: int
    depth: int
    chunked: bool
    priority: bool
    caching: bool
    lone_uncapped: bool
    reserve_whole: bool
    watermark: int
    self_ends: bool
    victim_skips: bool
    max_queued_requests: int
    max_queued_tokens: int
    overhead_s: float
    response_s: float
    min_output: int
    ring: int


class Follow(NamedTuple):
    """Requests that are sent because another ended."""

    turn: Int32Array
    """(n,) the next turn of its conversation, -1 none; or ()."""
    think_s: FloatArray
    closed: IntArray
    """(2,): next request of a closed loop and their number."""
    coming: Int32Array
    """(1,): root of the heap of those that have a time."""


class Content(NamedTuple):
    """What prompts hold, for the prefix cache: segments in one row after another."""

    first: IntArray
    """(n + 1,): the first segment of each request; () where every prompt is its own."""
    segment: IntArray
    end: Int32Array
    """Tokens of the prompt up to the end of the segment."""
    shared: Int32Array
    """(n,): tokens at the beginning that other requests may have too; () none."""


class State(NamedTuple):
    """Everything of a run: arrays by request (n,) and by replica (r, ...)."""

    requests: Records
    replicas: Records
    slots: Records
    """(r, max_seqs)"""
    finish: Int32Array
    """(r, ring): slots that end with a round, by round modulo ring."""
    phase_count: Int32Array
    """(r, block_size): how many DECODE slots need a block, by round modulo block_size."""
    flights: Records
    """(r, 2): the steps in flight, by number modulo 2."""
    news: Int32Array
    """(r, 2, max_seqs): 2 x request + whether it ends, of those that get their first or last token."""
    order: Int32Array
    """(r, max_seqs): scratch."""
    table: Int32Array
    """(r, max_seqs, longest): nodes of the first blocks of each slot, where prefixes are cached."""
    blocks: Records
    """(r, blocks + 2): nodes; the first is the ends of the free queue."""
    lookup: Int32Array
    """(r, 2^k): blocks by key, open addressing; 0 is empty."""
    follow: Follow
    content: Content
    steps: Records
    """(capacity,): a record of each step, where wanted."""
    pairs: Int32Array
    """(capacity, 3): step, request, tokens."""
    traced: IntArray
    """(2,): steps and pairs so far, those that found no room too."""


class View(NamedTuple):
    """One replica's rows of a State, and what all have in common."""

    row: Records
    """(1,): the replica itself."""
    slots: Records
    finish: Int32Array
    phase_count: Int32Array
    flights: Records
    news: Int32Array
    order: Int32Array
    table: Int32Array
    blocks: Records
    lookup: Int32Array
    requests: Records
    follow: Follow
    content: Content
    steps: Records
    pairs: Int32Array
    traced: IntArray


@compiled
def view(r: Int, state: State) -> View:
    return View(
        state.replicas[r : r + 1],
        state.slots[r],
        state.finish[r],
        state.phase_count[r],
        state.flights[r],
        state.news[r],
        state.order[r],
        state.table[r],
        state.blocks[r],
        state.lookup[r],
        state.requests,
        state.follow,
        state.content,
        state.steps,
        state.pairs,
        state.traced,
    )


_PER_REPLICA = (
    *("replicas", "slots", "finish", "phase_count", "flights", "news", "order"),
    *("table", "blocks", "lookup"),
)


def new_requests(schedule: Schedule) -> Records:
    """Requests of which nothing has happened yet; the schedule is copied."""
    requests = np.zeros(len(schedule), dtype=REQUEST)
    requests["sent_s"] = schedule.arrived_at_s
    requests["prompt"] = schedule.prompt_tokens
    requests["output"] = schedule.output_tokens
    requests["abandon_s"] = NEVER
    for name in ("queued_s", "first_s", "end_s"):
        requests[name] = np.nan
    for name in ("left", "right", "abandon_left", "abandon_right", "slot"):
        requests[name] = -1
    if schedule.priority is not None:
        requests["priority"] = schedule.priority
    if schedule.patience_s is not None:  # counts from when it is sent
        requests["abandon_s"] = schedule.patience_s
    return requests


def new_state(
    schedule: Schedule,
    limits: Limits,
    replicas: int,
    *,
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
    state = State(
        requests=new_requests(schedule),
        **_rows(replicas, limits, longest + 1),
        follow=Follow(turn, think_s, np.array([first, n]), np.full(1, -1, dtype=np.int32)),
        content=content_of(schedule, caching=limits.caching),
        steps=np.zeros(traced[0], dtype=STEP),
        pairs=np.zeros((traced[1], 3), dtype=np.int32),
        traced=np.zeros(2, dtype=np.int64),
    )
    return state


def _rows(count: int, limits: Limits, longest: int) -> dict[str, Any]:
    """Arrays of empty replicas."""
    replicas = np.zeros(count, dtype=REPLICA)
    for name in ("quiet_until_s",):
        replicas[name] = NEVER
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
    }


def grown(state: State, limits: Limits) -> State:
    """Room for twice as many replicas; the new ones are empty."""
    count = len(state.replicas)
    more = _rows(count, limits, state.table.shape[2])
    return state._replace(
        **{name: np.concatenate([getattr(state, name), more[name]]) for name in _PER_REPLICA}
    )


def emptied(state: State, limits: Limits, row: int) -> None:
    """A row as if it had never been used."""
    fresh = _rows(1, limits, state.table.shape[2])
    for name in _PER_REPLICA:
        getattr(state, name)[row] = fresh[name][0]


def content_of(schedule: Schedule, *, caching: bool) -> Content:
    """Segments of all prompts, and how much of each other requests may share."""
    none = np.zeros(0, dtype=np.int64)
    if not caching or schedule.segments is None:
        return Content(none, none, none.astype(np.int32), none.astype(np.int32))
    counts = np.fromiter((len(s) for s in schedule.segments), dtype=np.int64, count=len(schedule))
    first = np.concatenate([[0], np.cumsum(counts)])
    flat = [piece for segments in schedule.segments for piece in segments]
    segment, tokens = np.array(flat, dtype=np.int64).reshape(-1, 2).T
    total = np.cumsum(tokens)
    offset = np.concatenate([[0], total])[first[:-1]]
    return Content(
        first,
        np.ascontiguousarray(segment),
        (total - np.repeat(offset, counts)).astype(np.int32),
        _shared(schedule),
    )


def _shared(schedule: Schedule) -> Int32Array:
    """Tokens at the beginning of prompt and answer that another request has too, by segments."""
    assert schedule.segments is not None
    seen: dict[tuple[int, int], int] = {}  # (place in the tree, segment): users
    places: dict[tuple[int, int], int] = {}
    paths = []
    for i, segments in enumerate(schedule.segments):
        place = 0
        path = []
        for segment, _ in (*segments, (-1 - i, 0)):
            step = (place, segment)
            seen[step] = seen.get(step, 0) + 1
            path.append(step)
            place = places.setdefault(step, len(places) + 1)
        paths.append(path)
    shared = np.zeros(len(schedule), dtype=np.int32)
    for i, path in enumerate(paths):
        lengths = [tokens for _, tokens in schedule.segments[i]]
        lengths.append(int(schedule.output_tokens[i]))
        for step, tokens in zip(path, lengths, strict=True):
            if seen[step] < 2:
                break
            shared[i] += tokens
    return shared


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
        min_output=int(outputs.min()),
        ring=int(outputs.max()) + 2,
    )
