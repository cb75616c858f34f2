"""What lies between a client and the gateway, and sites at the edge.

A request takes half of its round trip to the gateway, and each token half of it back. So the client's
TTFT and E2E grow by the whole round trip; TPOT does not change, since tokens follow each other through
the same network.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from simulations.traffic.delays import Delay, LogNormalDelay, UniformDelay
from simulations.traffic.finite import Finite


class Network(Finite):
    """Access to the service: a round trip is drawn for each request."""

    round_trip: Delay


NETWORKS: dict[str, Network] = {
    # The article's figure for inference over a public network.
    "public": Network(round_trip=UniformDelay(min_s=0.1, max_s=0.3)),
    # An assumption: one site on the client's own network.
    "lan": Network(round_trip=LogNormalDelay(median_s=0.0005, p99_s=0.002)),
    # A site in the client's city: 58 % of users reach one within 10 ms (Charyyev, Arslan and Gunes,
    # GLOBECOM 2020); the tail is an assumption.
    "edge": Network(round_trip=LogNormalDelay(median_s=0.009, p99_s=0.03)),
}
"""Networks by name."""


class Overflow(Finite):
    """When a site passes a request on to the centre."""

    rule: Literal["never", "queue"] = "queue"
    """never: it waits at its site. queue: where more than `waiting` requests wait there."""
    waiting: int = Field(0, ge=0)


class Edge(Finite):
    """Small models close to the users, and a centre with the large one; `simulations.edge` runs it."""

    sites: int = Field(ge=1)
    replicas_per_site: int = Field(1, ge=1)
    site_zipf: float = Field(0.0, ge=0)
    """Users of the k-th site are as k^-site_zipf; 0 makes all sites alike."""
    to_site: Network = NETWORKS["edge"]
    to_centre: Network = NETWORKS["public"]
    """From a client, also by way of its site."""
    small_model_share: float = Field(1.0, gt=0, le=1)
    """Share of the requests that the small model can answer; the others go to the centre."""
    overflow: Overflow = Overflow()
