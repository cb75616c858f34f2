"""What the compiled core works on: one record per request, one per replica, and constants."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from serving.plan import EngineArgs
from simulations.latency import LatencyModel
from simulations.traffic import Schedule

NEVER = np.inf
CORE = ("_state.py", "_scheduler.py", "_replica.py", "_route.py")
DIGEST = hashlib.sha256(
    b"".join((Path(__file__).parent / name).read_bytes() for name in CORE)
).hexdigest()[:12]

Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def compiled(function: Compiled) -> Compiled:
    """Compile on first use; the machine code is kept where NUMBA_CACHE_DIR says.

    numba notices that a function's own file changed, not that one it calls did: the digest of all
    of them in the name keeps a warm cache from serving old code.
    """
    function.__qualname__ = f"{function.__name__}_{DIGEST}"
    return cast(Compiled, njit(cache=True)(function))


class Speed(NamedTuple):
    """The coefficients of a LatencyModel, in seconds."""

    floor: float
    base: float
    prefill_token: float
    decode_seq: float
    kv_token: float
    attention: float
    step_overhead: float


class Limits(NamedTuple):
    """What the engine may hold."""

    max_seqs: int
    max_step_tokens: int
    usable_blocks: int
    """One less than vLLM reports: it keeps a null block."""
    block_size: int
    overhead_s: float
    """From the sender to the engine's queue, per request."""
    closed_loop: bool
    """The end of a request sends the next one."""


REQUEST = np.dtype(
    [
        ("sent_s", np.float64),
        ("queued_s", np.float64),
        ("first_s", np.float64),
        ("end_s", np.float64),
        ("prompt", np.int64),
        ("output", np.int64),
        ("computed", np.int64),  # tokens in the KV cache
        ("done", np.int64),  # output tokens so far
        ("chunk", np.int64),  # tokens computed in the step in flight
        ("preemptions", np.int64),
        ("following", np.int64),  # who is behind in the waiting queue, -1 at its tail
    ],
    align=True,
)

REPLICA = np.dtype(
    [
        ("n_running", np.int64),
        ("n_waiting", np.int64),
        ("head", np.int64),
        ("tail", np.int64),
        ("free_blocks", np.int64),
        ("outstanding", np.int64),
        ("next_closed", np.int64),  # the next request of a closed loop
        ("ttft_count", np.int64),
        ("ttft_sum_s", np.float64),
        ("clock_s", np.float64),  # end of the last completed step
        ("flight_start_s", np.float64),
        ("flight_end_s", np.float64),  # end of the step in flight, NEVER where there is none
        ("flight_busy_s", np.float64),
        ("quiet_until_s", np.float64),  # no request ends before this
        ("busy_s", np.float64),  # inside steps: what the device reports as busy
        ("active_s", np.float64),  # the same with the gaps between steps
    ],
    align=True,
)

Requests = Any
"""Record array of REQUEST, (n,). (Field access by attribute has no static type.)"""
Replicas = Any
"""Record array of REPLICA, (r,)."""
Slots = npt.NDArray[np.int64]
"""(r, max_seqs): the running requests of each replica in order of admission."""


def new_requests(schedule: Schedule) -> Requests:
    """Requests of which nothing has happened yet; the schedule is copied."""
    requests = np.zeros(len(schedule), dtype=REQUEST)
    requests["sent_s"] = schedule.arrived_at_s
    requests["prompt"] = schedule.prompt_tokens
    requests["output"] = schedule.output_tokens
    for name in ("queued_s", "first_s", "end_s"):
        requests[name] = np.nan
    requests["following"] = -1
    return requests


def new_replicas(count: int, limits: Limits) -> tuple[Replicas, Slots]:
    """Empty replicas at time 0."""
    replicas = np.zeros(count, dtype=REPLICA)
    for name in ("head", "tail"):
        replicas[name] = -1
    for name in ("flight_end_s", "quiet_until_s"):
        replicas[name] = NEVER
    replicas["free_blocks"] = limits.usable_blocks
    return replicas, np.zeros((count, limits.max_seqs), dtype=np.int64)


def speed_of(latency: LatencyModel) -> Speed:
    """The coefficients as the compiled core wants them."""
    return Speed(
        floor=latency.floor_s,
        base=latency.base_s,
        prefill_token=latency.per_prefill_token_s,
        decode_seq=latency.per_decode_seq_s,
        kv_token=latency.per_kv_token_s,
        attention=latency.per_prefill_attention_s,
        step_overhead=latency.step_overhead_s,
    )


def limits_of(latency: LatencyModel, engine: EngineArgs, *, closed_loop: bool = False) -> Limits:
    """What one replica may hold."""
    return Limits(
        max_seqs=engine.max_num_seqs,
        max_step_tokens=engine.max_num_batched_tokens,
        usable_blocks=latency.kv_blocks - 1,
        block_size=latency.block_size_tokens,
        overhead_s=latency.request_overhead_s,
        closed_loop=closed_loop,
    )
