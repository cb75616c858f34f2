"""What stands between clients and replicas: balancing, limits, retries and the result cache."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from serving.values import Value

Balancing = Literal["least_outstanding", "round_robin", "two_choices", "prefix_hash"]
BALANCING: tuple[str, ...] = get_args(Balancing)

_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
BUCKETS_S: dict[str, tuple[float, ...]] = {
    "ttft": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
        *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
    ),
    "tpot": (
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
        *(10.0, 20.0, 40.0, 80.0),
    ),
    "e2e": _LATENCY_S,
    "queue": _LATENCY_S,
}
"""Upper edges of vLLM's histograms, +Inf left out.

Source:  vllm/v1/metrics/buckets.py, 0.32.
"""


class ResultCache(Value):
    """Answers to questions that were asked before, word for word; the least recently used goes."""

    size: int = Field(10_000, ge=1)
    """Answers that it holds."""
    ttl_s: float = Field(3600.0, gt=0)
    answer_s: float = Field(0.002, ge=0)
    """From the question to the whole answer."""


class Gateway(Value):
    """How requests find a replica, and what is done when they find none."""

    balancing: Balancing = "least_outstanding"
    """`two_choices` takes the less loaded of two at random (Mitzenmacher 2001); `prefix_hash` sends
    what begins alike to one replica, as long as that is not loaded above 1.25 times the mean
    (rendezvous hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam 2018)."""
    max_outstanding: int | None = Field(None, ge=1)
    """Requests at one replica; where all have as many, the gateway answers 503."""
    result_cache: ResultCache | None = None
    max_retries: int = Field(0, ge=0, le=10)
    """How often a client sends again what was refused, failed or took too long."""
    backoff_s: float = Field(1.0, ge=0)
    """Before the first retry; doubled for each further one, times 0.5 to 1.5 at random."""
