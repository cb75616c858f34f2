"""Which series a pod shows, in vLLM's and the DCGM exporter's own names, and where they are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

import numpy as np

from serving import promql
from serving.alerts import ANSWERS, MEMORY_FREE, MEMORY_USED
from serving.signals import E2E, FINISHED, GPU_BUSY, KV_USAGE, RUNNING, SIGNALS, TTFT, WAITING
from simulations.engine import BUCKETS_S, Reading
from simulations.metrics.promql import Columns, Labels
from simulations.metrics.samples import Flags, FloatArray, IntArray, Samples

_HISTOGRAMS = {TTFT: "ttft", E2E: "e2e"}
_HANDLER = {"handler": "/v1/chat/completions"}
_SCALARS: tuple[tuple[str, tuple[Labels, ...]], ...] = (
    (RUNNING.metric, ({},)),
    (WAITING.metric, ({},)),
    (KV_USAGE.metric, ({},)),
    (f"{TTFT}_sum", ({},)),
    (f"{TTFT}_count", ({},)),
    (f"{E2E}_sum", ({},)),
    (f"{E2E}_count", ({},)),
    (FINISHED.metric, tuple({"finished_reason": why} for why in ("stop", "abort", "error"))),
    (ANSWERS, tuple({**_HANDLER, "status": status} for status in ("2xx", "5xx"))),
    ("vllm:prompt_tokens_total", ({},)),
    ("vllm:generation_tokens_total", ({},)),
)
N_GAUGES = 3
"""The first columns: requests running and waiting, and KV usage."""
N_SCALARS = sum(len(labels) for _, labels in _SCALARS)
"""The next, which are counters of one number each; then those of histograms."""
_SERIES = (
    *_SCALARS,
    *(
        (
            f"{name}_bucket",
            tuple({"le": edge} for edge in (*(f"{e:g}" for e in BUCKETS_S[short]), "+Inf")),
        )
        for name, short in _HISTOGRAMS.items()
    ),
)
_N_BUCKETS = {name: len(BUCKETS_S[name]) + 1 for name in _HISTOGRAMS.values()}
N_SERVER = N_SCALARS + sum(_N_BUCKETS.values())
TOTALS = (
    *("ttft_sum_s", "ttft_count", "e2e_sum_s", "finished", "aborted", "rejected", "failed"),
    *("prompt_tokens", "generation_tokens"),
)
"""Of a `Reading`: what the counters of one number each are made of."""
SERVER_COUNTERS: Flags = np.arange(N_SERVER) >= N_GAUGES
GPU_COUNTERS: Flags = np.zeros(3, dtype=np.bool_)


def layout(server: Samples, gpu: Samples) -> Mapping[str, Columns]:
    """{metric: where its series are}: those of vLLM's server, and of its GPU."""
    found: dict[str, Columns] = {}
    begin = 0
    for name, labels in _SERIES:
        found[name] = Columns(server, begin, labels)
        begin += len(labels)
    for i, name in enumerate((GPU_BUSY.metric, MEMORY_USED, MEMORY_FREE)):
        found[name] = Columns(gpu, i)
    return found


def server_columns(signals: Collection[str]) -> int:
    """How many of a server's first columns tell some metrics of the autoscaler; those of its GPU none."""
    counts = [0, *(len(labels) for _, labels in _SERIES)]
    begin = dict(zip((name for name, _ in _SERIES), accumulate(counts), strict=False))
    if not all(name in SIGNALS for name in signals):
        return N_SERVER
    read = [begin.get(m, 0) for n in signals for m in promql.metrics(SIGNALS[n].per_pod)]
    last = max(read, default=0)
    return next(n for n in (N_GAUGES, N_SCALARS, N_SERVER) if last < n)


def server_rows(readings: Sequence[Reading]) -> FloatArray:
    """What servers expose, a row each."""
    gauges = np.array([(r.running, r.waiting, r.kv_usage) for r in readings], dtype=np.float64)
    totals = np.array([[getattr(r, name) for name in TOTALS] for r in readings], dtype=np.float64)
    histograms = {}
    for name, count in _N_BUCKETS.items():
        none = np.zeros(count, dtype=np.int64)
        histograms[name] = np.array([r.histograms.get(name, none) for r in readings])
    return exposed(gauges.reshape(-1, N_GAUGES), totals.reshape(-1, len(TOTALS)), histograms)


def exposed(
    gauges: FloatArray, totals: FloatArray, histograms: Mapping[str, IntArray]
) -> FloatArray:
    """The same from the numbers of each server, a row each.

    A request that was answered or given up began with a 200; one that was refused or failed got a 5xx.

    Args:    gauges: requests running and waiting, and KV usage.
             totals: by TOTALS.
             histograms: observations by name and bucket; {} leaves the last columns out.
    """
    of = dict(zip(TOTALS, totals.T, strict=True))
    counters = (
        *(of["ttft_sum_s"], of["ttft_count"], of["e2e_sum_s"], of["finished"]),
        *(of["finished"], of["aborted"], 0),
        *(of["finished"] + of["aborted"], of["rejected"] + of["failed"]),
        *(of["prompt_tokens"], of["generation_tokens"]),
    )
    rows = np.empty((len(gauges), N_SERVER if histograms else N_SCALARS))
    rows[:, :N_GAUGES] = gauges
    for column, values in enumerate(counters, N_GAUGES):
        rows[:, column] = values
    begin = N_SCALARS
    for name, count in _N_BUCKETS.items() if histograms else ():
        if len(rows):
            np.cumsum(histograms[name], axis=1, out=rows[:, begin : begin + count])
        begin += count
    return rows
