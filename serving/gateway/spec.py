"""What stands between clients and replicas: balancing, limits and the result cache, as data."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from serving.values import Value

Balancing = Literal["least_outstanding", "round_robin", "two_choices", "prefix_hash"]
BALANCING: tuple[str, ...] = get_args(Balancing)


class ResultCache(Value):
    """Answers to questions that were asked before, word for word; the least recently used goes."""

    size: int = Field(10_000, ge=1)
    """Answers that it holds."""
    ttl_s: float = Field(3600.0, gt=0)
    answer_s: float = Field(0.002, ge=0)
    """From the question to the whole answer."""


class GatewaySpec(Value):
    """How requests find a replica, and what is done when they find none."""

    balancing: Balancing = "least_outstanding"
    """`two_choices` takes the less loaded of two at random (Mitzenmacher 2001); `prefix_hash` sends
    what begins alike to one replica, as long as that is not loaded above 1.25 times the mean
    (rendezvous hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam 2018)."""
    max_outstanding: int | None = Field(None, ge=1)
    """Requests at one replica; where all have as many, the gateway answers 503."""
    result_cache: ResultCache | None = None
