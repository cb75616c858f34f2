"""What the compiled core works on: records of requests, replicas, running slots and KV blocks.

_setup.py makes them. One `State` holds everything of a run. Lists inside the records are linked by
index, -1 (of blocks 0, the null block) where they end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from simulations.engine._compiler import compiled

NEVER = np.inf
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float64]
Int = Any
"""An integer of compiled code, of whatever width."""
Records = Any
"""A record array. (Field access by attribute has no static type.)"""


YES: Any = np.bool_(True)
NO: Any = np.bool_(False)
"""Of a type, unlike True and False: a function is compiled once for both."""
COMING, INBOX, WAITING, RUNNING, DONE, ABORTED, REJECTED, FAILED, CACHED = range(9)
"""Status of a request: not sent yet, on its way to the queue, in it, running, and five ends."""
TTFT, TPOT, E2E, QUEUE = np.arange(4)
"""Histograms of a replica, see gateway.BUCKETS_S."""
PREFILL, DECODE, STALLED, DRAINING = range(4)
"""Kind of a slot: computing what was there, one token a step, a decode that a step may leave out,
and one whose last token is in flight."""


REQUEST = np.dtype(
    [
        ("sent_s", np.float64),
        ("queued_s", np.float64),  # when it reaches the engine's queue
        ("abandon_s", np.float64),
        ("prompt", np.int32),
        ("output", np.int32),
        ("out", np.int32),  # output tokens that steps so far bring
        ("left", np.int32),  # links of the list or heap that it is in
        ("right", np.int32),
        ("abandon_left", np.int32),
        ("abandon_right", np.int32),
        ("slot", np.int32),
        ("priority", np.int32),
        ("waited_s", np.float32),  # in the queue, before it was first scheduled
        ("attempts", np.int16),  # how often it was sent
        ("status", np.int8),
        ("version", np.int8),  # of the last replica that had it
        ("replica", np.int32),  # its number, -1 none
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
        ("cached", np.int32),  # tokens in the KV cache while it prefills, and when it had
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
        ("seqs", np.int32),  # of a step that somebody hears of
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
        ("follow_s", np.float64),  # nobody is sent because of what happens here before this
        ("slowdown", np.float64),  # factor on its steps
        ("error_share", np.float64),  # of requests, which it fails at once
        ("tpot_sum_s", np.float64),
        ("e2e_sum_s", np.float64),
        ("queue_sum_s", np.float64),
        ("prompt_tokens", np.int64),
        ("generation_tokens", np.int64),
        ("finished", np.int64),
        ("aborted", np.int64),
        ("rejected", np.int64),
        ("failed", np.int64),
        ("number", np.int32),
        ("version", np.int32),
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
        ("preemptions", np.int32),
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
        ("preemptions", np.int32),
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
    launch: float
    launch_large: float
    """The same of steps of more than `captured` tokens."""
    captured: int
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
    response_seq_s: float
    min_output: int
    ring: int


class Outcomes(NamedTuple):
    """What becomes of requests, by request (n,): columns, since a table is made of them."""

    first_s: FloatArray
    end_s: FloatArray
    preemptions: Int32Array
    hit_tokens: Int32Array


class Follow(NamedTuple):
    """Requests that are sent because another ended."""

    turn: Int32Array
    """(n,) the next turn of its conversation, -1 none; or ()."""
    think_s: FloatArray
    closed: IntArray
    """(2,): next request of a closed loop and their number."""
    coming: Int32Array
    """(1,): root of the heap of those that have a time."""


class Gate(NamedTuple):
    """Clients and GatewaySpec as numbers: what stands between users and replicas."""

    policy: int
    most: int
    """Outstanding requests of a replica that takes no more, -1 for no limit."""
    retries: int
    """How often clients send again what failed."""
    timeout_s: float
    """Of one attempt."""
    backoff_s: float
    longest_backoff_s: float
    jitter: float
    patience_s: FloatArray
    """(n,): after so long its user leaves, whatever attempt it is; () never."""
    cache_size: int
    cache_ttl_s: float
    cache_s: float
    """What an answer from the cache takes."""
    seed: int
    key: Int32Array
    """(n,): the question that a request asks, -1 none; ()."""
    conversation: Int32Array
    """(n,); () where each request is its own."""
    prefix: Int32Array
    """(n,): what the prompt begins with; ()."""
    asked_s: FloatArray
    """(n,): when it was sent first; () where nothing is sent again."""
    stored_s: FloatArray
    """(k,): when the answer to a question was stored, -inf: it is not."""
    newer: Int32Array
    older: Int32Array
    ends: Int32Array
    """(3,): the question answered last, the one answered least recently, and how many there are."""
    edges: FloatArray
    """(4, m): upper edges of the histograms, padded with inf; (0, 0) for none."""


class Content(NamedTuple):
    """What prompts hold, for the prefix cache: segments in one row after another."""

    first: IntArray
    """(n + 1,): the first segment of each request; () where every prompt is its own."""
    segment: IntArray
    tokens: Int32Array
    """How long each segment is."""
    shared: Int32Array
    """(n,): tokens at the beginning that other requests may have too; () none."""


class State(NamedTuple):
    """Everything of a run: arrays by request (n,) and by replica (r, ...)."""

    requests: Records
    outcomes: Outcomes
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
    counts: IntArray
    """(r, 4, m + 1): observations by histogram (HISTOGRAMS) and bucket."""
    follow: Follow
    gate: Gate
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
    counts: IntArray
    requests: Records
    outcomes: Outcomes
    follow: Follow
    gate: Gate
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
        state.counts[r],
        state.requests,
        state.outcomes,
        state.follow,
        state.gate,
        state.content,
        state.steps,
        state.pairs,
        state.traced,
    )
