"""What a step leaves behind in compiled code, vLLM's `update_from_output`: first tokens, and ends.

Source:  vllm/v1/core/sched/scheduler.py, 0.32.
"""

from __future__ import annotations

import numpy as np

from simulations.engine._clients import over
from simulations.engine._compiler import compiled
from simulations.engine._results import store
from simulations.engine._slots import stop
from simulations.engine._state import (
    DONE,
    E2E,
    NO,
    QUEUE,
    RUNNING,
    TPOT,
    TTFT,
    WAITING,
    YES,
    FloatArray,
    Int,
    IntArray,
    Limits,
    View,
)


@compiled
def _observe(histogram: Int, value_s: float, edges: FloatArray, counts: IntArray) -> None:
    if len(edges) == 0:
        return
    k = 0
    while k < edges.shape[1] and value_s > edges[histogram, k]:
        k += 1
    counts[histogram, k] += 1


@compiled
def _count(i: Int, now_s: float, st: View, limits: Limits) -> None:
    """What a finished request adds to the metrics, and its answer to the gateway's cache."""
    e, request, gate = st.row[0], st.requests[i], st.gate
    first_s, end_s = st.outcomes.first_s[i], st.outcomes.end_s[i]
    e.finished += 1
    e2e_s = now_s - request.queued_s + limits.overhead_s
    tpot_s = 0.0
    if request.output > 1:
        tpot_s = (end_s - first_s) / (request.output - 1)
    e.e2e_sum_s += e2e_s
    e.tpot_sum_s += tpot_s
    e.queue_sum_s += request.waited_s
    _observe(E2E, e2e_s, st.gate.edges, st.counts)
    _observe(TPOT, tpot_s, st.gate.edges, st.counts)
    _observe(QUEUE, np.float64(request.waited_s), st.gate.edges, st.counts)
    if gate.cache_size > 0 and gate.key[i] >= 0:
        store(np.int64(gate.key[i]), now_s, gate)


@compiled
def complete(st: View, limits: Limits) -> None:
    """The oldest step in flight takes effect: first tokens, and requests that end."""
    e = st.row[0]
    step = e.updated + 1
    flight = st.flights[step % 2]
    row = st.news[step % 2]
    now_s = flight.end_s
    seen_s = now_s + limits.response_s + limits.response_seq_s * flight.seqs
    e.busy_s += flight.busy_s
    e.active_s += now_s - flight.start_s
    e.updated = step
    for k in range(flight.count):
        i = np.int64(row[k] // 2)
        request = st.requests[i]
        if request.status != RUNNING and request.status != WAITING:
            continue
        if np.isnan(st.outcomes.first_s[i]):
            st.outcomes.first_s[i] = seen_s
            ttft_s = now_s - request.queued_s + limits.overhead_s
            e.ttft_sum_s += ttft_s
            e.ttft_count += 1
            e.prompt_tokens += request.prompt
            _observe(TTFT, ttft_s, st.gate.edges, st.counts)
            e.unanswered_tokens -= request.prompt
        if row[k] % 2 == 0:
            continue
        if request.status == RUNNING:
            stop(np.int64(request.slot), step, NO, st, limits)
        else:  # preempted with its last token in flight
            e.n_waiting -= 1
        request.status = DONE
        st.outcomes.end_s[i] = seen_s
        e.outstanding -= 1
        _count(i, now_s, st, limits)
        over(i, seen_s, YES, st.follow, st.requests, st.gate)
