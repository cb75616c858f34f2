"""The article's alerts, in one place: the bundle exports them, the simulated fleet evaluates them.

They are literal but for two things, since they would fire for ever: 500 ms binds to the time to the
first token (a whole answer takes longer), and GPU memory above 85 % counts only together with a KV cache
above 85 % (vLLM reserves the memory at its start).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving import promql
from serving.promql import Aggregate, Both, Compute, Constant, Either, Expression, Rate, Series
from serving.signals import FINISHED, GPU_BUSY, KV_USAGE, LONG_WINDOW_S, TTFT, mean, quantile

LATENCY_LIMIT_S = 0.5
FULL = 0.85
ERROR_SHARE = 0.01
FALL = 0.2
ANSWERS = "http_requests_total"
MEMORY_USED, MEMORY_FREE = "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"


@dataclass(frozen=True)
class Alert:
    """A rule of Prometheus: it fires once its expression has held for so long."""

    name: str
    expression: Expression
    summary: str
    runbook: str
    for_s: int = 0
    severity: Literal["page", "warning"] = "page"

    @property
    def reach_s(self) -> float:
        """How long before it fires that may have happened which it fires on."""
        return promql.reach_s(self.expression) + self.for_s


def _rate(of: Series, offset_s: int = 0) -> Expression:
    return Aggregate("sum", Rate(of, LONG_WINDOW_S, offset_s))


def _finished(reason: str) -> Series:
    return Series(FINISHED.metric, (f'finished_reason="{reason}"',))


_NOW = _rate(FINISHED)
_API = 'handler=~"/v1/.*"'
_USED, _FREE = Series(MEMORY_USED), Series(MEMORY_FREE)

ALERTS = (
    Alert(
        "LatencyMeanHigh",
        Compute(mean(TTFT), ">", LATENCY_LIMIT_S),
        summary="Mean time to first token is above 500 ms.",
        runbook="Look at vllm:num_requests_waiting: if it grows and the autoscaler is at"
        " maxReplicas, raise it; if new replicas are pending, free GPUs.",
    ),
    Alert(
        "LatencyP99High",
        Compute(quantile(0.99, TTFT), ">", LATENCY_LIMIT_S),
        summary="P99 time to first token is above 500 ms.",
        runbook="If the mean is low, look for long prompts and for one slow replica; else as for"
        " LatencyMeanHigh.",
    ),
    Alert(
        "GpuUtilisationHigh",
        Compute(Aggregate("avg", GPU_BUSY), ">", 100 * FULL),
        for_s=300,
        severity="warning",
        summary="GPUs have been busy above 85 % for 5 minutes.",
        runbook="Act only if latency is high too: a GPU counts as busy with a single request.",
    ),
    Alert(
        "GpuMemoryHigh",
        Both(
            Compute(
                Aggregate("avg", Compute(_USED, "/", Compute(_USED, "+", _FREE))),
                ">",
                FULL,
            ),
            Compute(Aggregate("avg", KV_USAGE), ">", FULL),
        ),
        for_s=300,
        severity="warning",
        summary="GPU memory and KV cache have been above 85 % for 5 minutes.",
        runbook="Requests will wait or be recomputed: add replicas or shorten contexts.",
    ),
    # Answers that begin with an error, or streams that end with one: vLLM counts them apart.
    Alert(
        "ErrorRateHigh",
        Either(
            Compute(
                Compute(
                    _rate(Series(ANSWERS, (_API, 'status=~"5.*"'))),
                    "/",
                    _rate(Series(ANSWERS, (_API,))),
                ),
                ">",
                ERROR_SHARE,
            ),
            Compute(Compute(_rate(_finished("error")), "/", _NOW), ">", ERROR_SHARE),
        ),
        summary="More than 1 % of the requests fail.",
        runbook="Read the pods' logs and restarts; after a rollout, undo it. 503 is a full queue.",
    ),
    Alert(
        "TimeoutRateHigh",
        Compute(Compute(_rate(_finished("abort")), "/", _NOW), ">", ERROR_SHARE),
        summary="More than 1 % of the requests are given up by their clients.",
        runbook="Check latency and the clients' time limits.",
    ),
    Alert(
        "RequestVolumeFell",
        Compute(
            Either(_NOW, Constant(0)),
            "<",
            Compute(_rate(FINISHED, offset_s=LONG_WINDOW_S), "*", 1 - FALL),
        ),
        severity="warning",
        summary="Request volume fell by more than 20 % within 5 minutes.",
        runbook="Check the gateway, DNS and the replicas' readiness. At few requests a fall of"
        " 20 % is chance.",
    ),
)
