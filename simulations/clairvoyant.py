"""The fewest GPU hours that keep an SLO with the future known: a bound that no fleet can beat.

*Work.* A step of s sequences takes at least the sum of what each sequence brings to it: its own
coefficients, and a part 1 / max_num_seqs of what the step costs anyhow, since no step holds more
(a prompt's part of `prefill_step_s` is by its tokens, of which a step holds max_num_batched_tokens).
Of the knee, max(floor, arithmetic), the bound takes whichever of both gives more work in all. Summed
over its steps (a prompt in as few chunks as fit, then one token a step) that is the least time that
a request takes of some replica, chunked and batched at its best. Gaps between steps cost nothing.

*TPOT.* A limit of L on TPOT makes batches smaller, and work dearer. A step lasts T >= A + x, where A is
what it costs anyhow (base, and floor or not) and x the sum of what each of its sequences brings to it,
w. Share A out by w: the step is w (1 + A / x) of each. Over the n decode steps of a request that keeps
the limit the T sum up to at most n L, hence the x to at most X = n (L - A) (and a little: first and last
token may be sent after steps of different size). By Cauchy and Schwarz its work is then

    sum w + A sum w / x  >=  sum w + A (sum sqrt w)^2 / X

which is taken where it gives a higher bound than the above. Of the requests that need not keep TTFT or
E2E others may be those that need not keep TPOT: as many again may be dropped.

*Windows.* A request that must keep the SLO is worked on between its arrival and its due time. With
an E2E limit that is the limit. With a TTFT limit, decoding goes on in every step after the first
token, so that it ends at most as many of the longest steps later, or n L later with a limit on TPOT.
Later turns of conversations, requests of the warm-up and those due after the end of the traffic need
not be served at all, and of the others so many may be dropped as the percentile, errors and time-outs
allow: whichever are worst.

*Bound.* A fleet of R(t) replicas works at a rate of at most R(t). At least `least` are always there.
Were all work fluid, `least` replicas could do at most F of it within the windows: what is available
with the earliest due time first is optimal, as in matching intervals to points (Glover 1967). All
other work needs further replicas, one second each. So

    replica seconds >= least x duration + max(0, work - F - work of the k largest)

*Why nothing feasible is cheaper.* Take any fleet that keeps the SLO, and of what it does the part
up to a rate of `least`. That part is a schedule of `least` fluid replicas within the windows, hence
at most F. The rest was done by replicas beyond `least`, each of which does at most one second of work
a second. What it dropped is at most the k largest. Replicas that load, drain or idle only add.

Assumed: a preempted sequence is taken up again at once; pods are never fewer than `least`.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from serving.plan import EngineArgs, Slo
from simulations.latency import FloatArray, LatencyModel
from simulations.traffic import Schedule, Workload

_LATE = 0.01
"""Of a p99."""


def clairvoyant_bound(
    workload: Workload,
    latency: LatencyModel,
    engine: EngineArgs,
    slo: Slo,
    *,
    seed: int = 0,
    gpus_per_replica: int = 1,
    least: int = 1,
    result_cache: bool = False,
) -> float:
    """GPU hours per 24 h below which no fleet keeps the SLO on the seed's traffic.

    Args:    least: replicas that are always there; 0 where the fleet may scale to zero.
             result_cache: whether answers may come from the gateway.
    """
    schedule = workload.at(seed=workload.seed + seed).schedule()
    counted = schedule.arrived_at_s >= workload.warmup_s
    allowed = _LATE + slo.max_error_share
    if schedule.patience_s is not None or schedule.clients is not None:
        allowed += slo.max_timeout_share
    found_s = least * workload.duration_s
    for tpot_s in {None, slo.tpot_p99_s}:
        work_s = least_work_s(schedule, latency, engine, tpot_s=tpot_s, result_cache=result_cache)
        # Percentiles are interpolated between two requests.
        late = allowed if tpot_s is None else allowed + _LATE
        dropped = math.ceil(late * int(counted.sum())) + (1 if tpot_s is None else 2)
        for due_s in _due_s(schedule, latency, engine, slo, tpot_s):
            bound_s = fewest_replica_s(
                schedule.arrived_at_s,
                due_s,
                np.where(counted, work_s, 0.0),
                until_s=workload.duration_s,
                least=least,
                dropped=dropped,
            )
            found_s = max(found_s, bound_s)
    return found_s / workload.duration_s * 24 * gpus_per_replica


def fewest_replica_s(
    arrived_at_s: FloatArray,
    due_s: FloatArray,
    work_s: FloatArray,
    *,
    until_s: float,
    least: int,
    dropped: int,
) -> float:
    """Replica seconds until `until_s` that the work in its windows needs; what is due later is free.

    Args:    arrived_at_s, due_s, work_s: (n,); arrivals ascend.
             dropped: so many may be left out.
    """
    work_s = np.where(due_s <= until_s, work_s, 0.0)
    kept = np.flatnonzero(work_s)
    largest = np.sort(work_s[kept])[::-1][:dropped].sum()
    done_s = _most_done_s(arrived_at_s[kept], due_s[kept], work_s[kept], least)
    return least * until_s + max(0.0, float(work_s.sum() - largest) - done_s)


def _most_done_s(
    arrived_at_s: FloatArray, due_s: FloatArray, work_s: FloatArray, rate: int
) -> float:
    """The most work that a fluid server of this rate does within the windows."""
    if rate == 0 or len(work_s) == 0:
        return 0.0
    waiting: list[tuple[float, float]] = []
    done_s = now_s = 0.0
    following = np.append(arrived_at_s[1:], np.inf)
    for arrived_s, due, work, next_s in zip(
        arrived_at_s.tolist(), due_s.tolist(), work_s.tolist(), following.tolist(), strict=True
    ):
        now_s = max(now_s, arrived_s)
        heapq.heappush(waiting, (due, work))
        while waiting and now_s < next_s:
            due_next, left = heapq.heappop(waiting)
            end_s = min(next_s, due_next, now_s + left / rate)
            if end_s <= now_s:
                continue  # what is overdue is lost
            done = min(left, rate * (end_s - now_s))
            done_s += done
            now_s = end_s
            if left - done > 1e-12 and due_next > now_s:
                heapq.heappush(waiting, (due_next, left - done))
    return done_s


def least_work_s(
    schedule: Schedule,
    latency: LatencyModel,
    engine: EngineArgs,
    *,
    tpot_s: float | None = None,
    result_cache: bool = False,
) -> FloatArray:
    """The least seconds of steps that each request takes of a replica, if it keeps a limit on TPOT.

    A prompt that may be found in the prefix cache counts one token. An answer that may be cached, and
    a turn whose time depends on the answer before it, count nothing.
    """
    prompt = schedule.prompt_tokens.astype(np.float64)
    if engine.enable_prefix_caching and schedule.segments is not None:
        computed = np.ones_like(prompt)
    else:
        computed = prompt
    decodes = np.maximum(schedule.output_tokens.astype(np.float64) - 1, 0)
    steps = np.ceil(computed / engine.max_num_batched_tokens) + decodes
    kv_tokens = decodes * prompt + decodes * (decodes - 1) / 2
    own_s = (
        latency.per_seq_s * steps
        + latency.per_kv_token_s * kv_tokens
        + latency.per_prefill_attention_s * computed * (computed + 1) / 2
        + latency.prefill_step_s * computed / engine.max_num_batched_tokens
    )
    arithmetic_s = latency.per_token_s * (computed + decodes)
    if tpot_s is None:
        own_s += latency.base_s / engine.max_num_seqs * steps
        weights_s = latency.floor_s / engine.max_num_seqs * steps
    else:
        least = latency.base_s, latency.base_s + latency.floor_s
        slack_s = _sent_late_s(latency, engine)
        arithmetic_s += _of_steps_s(
            prompt, decodes, latency.per_token_s, least[0], tpot_s, slack_s, latency
        )
        weights_s = _of_steps_s(prompt, decodes, 0.0, least[1], tpot_s, slack_s, latency)
    served = np.ones(len(schedule), dtype=bool)
    if schedule.after is not None:
        served &= schedule.after < 0
    if result_cache and schedule.key is not None:
        served &= schedule.key < 0
    arithmetic_s, weights_s = arithmetic_s * served, weights_s * served
    more_s = arithmetic_s if arithmetic_s.sum() >= weights_s.sum() else weights_s
    return np.asarray(own_s * served + more_s, dtype=np.float64)


def _of_steps_s(
    prompt: FloatArray,
    decodes: FloatArray,
    token_s: float,
    anyhow_s: float,
    tpot_s: float,
    slack_s: float,
    latency: LatencyModel,
) -> FloatArray:
    """What a request that keeps its TPOT takes of its steps' cost A, `anyhow_s`: A (sum sqrt w)^2 / X.

    The roots rise from step to step, so that the first and the integral from there are less than their
    sum. 0 where a lone sequence breaks the limit: then no request keeps it.
    """
    per_kv_s = latency.per_kv_token_s
    first_s = latency.per_seq_s + token_s + per_kv_s * prompt
    more = np.maximum(decodes - 1, 0)
    if per_kv_s > 0:
        roots = 2 / (3 * per_kv_s) * ((first_s + per_kv_s * more) ** 1.5 - first_s**1.5)
    else:
        roots = more * np.sqrt(first_s)
    roots = np.where(decodes > 0, roots + np.sqrt(first_s), 0.0)
    others_s = decodes * (tpot_s - anyhow_s) + slack_s
    kept = (decodes > 0) & (others_s > 0)
    return np.where(kept, anyhow_s * roots**2 / np.where(kept, others_s, 1.0), 0.0)


def _sent_late_s(latency: LatencyModel, engine: EngineArgs) -> float:
    """How much longer after its step a first token may be sent than a last one."""
    return float(latency.response_per_seq_s * engine.max_num_seqs)


def _due_s(
    schedule: Schedule,
    latency: LatencyModel,
    engine: EngineArgs,
    slo: Slo,
    tpot_s: float | None = None,
) -> list[FloatArray]:
    """By when each request is done, for each limit that says so; those that keep a TPOT sooner."""
    found = []
    if slo.e2e_p99_s is not None:
        found.append(schedule.arrived_at_s + slo.e2e_p99_s)
    if slo.ttft_p99_s is not None:
        decodes = np.maximum(schedule.output_tokens - 1, 0)
        decoding_s = decodes * _longest_step_s(latency, engine)
        if tpot_s is not None:
            within_s = decodes * tpot_s + _sent_late_s(latency, engine)
            decoding_s = np.minimum(decoding_s, within_s)
        found.append(schedule.arrived_at_s + slo.ttft_p99_s + decoding_s)
    return found


def _longest_step_s(latency: LatencyModel, engine: EngineArgs) -> float:
    """A full batch, a full budget of prompt tokens at the longest context, and a full cache."""
    prefill = float(engine.max_num_batched_tokens)
    seqs = float(engine.max_num_seqs)
    kv_tokens = float(latency.kv_blocks * latency.block_size_tokens)
    attention = prefill * engine.max_model_len
    step_s = latency.step_time_s(prefill, seqs, kv_tokens, attention, seqs)
    launched_s = max(latency.prefill_launch_s, latency.uncaptured_launch_s)
    return max(float(step_s), launched_s) + latency.step_overhead_s
