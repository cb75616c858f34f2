"""Sites with small models close to their users, and a centre behind a longer round trip.

Two passes. First every site is run by itself, with what its users send and its small model can answer;
its gateway refuses a request as soon as each of its replicas has as many as run at a time and more than
`overflow.waiting` besides. Then the centre is run with those that were refused and those that only the
large model can answer. That is exact, as no site hears of the centre or of another site.

What it neglects: a request comes to its gateway when it is sent, and the whole round trip is added to
what its user sees (a Poisson process that is delayed stays one); one that is passed on takes no longer
than one that goes to the centre at once; the queue of a site is counted in requests, so that one that
waits for a prefill before it while there is room to run does not count as waiting; and answers of the
small model are taken for as good as those of the large one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from serving.errors import InputError
from serving.plan import Plan
from simulations.engine import check_lengths, request_frame
from simulations.fleet import Cluster, Fleet
from simulations.latency import LatencyModel
from simulations.simulate import as_users_see, controller_of, phases, user_metrics
from simulations.traffic import ClosedLoop, Edge, FloatArray, IntArray, Schedule, Workload
from simulations.traffic.popularity import zipf_ranks

_EDGE_STREAM = 2000
"""Spawn key of who lives where and how far away; those of a run's control loops are below."""


@dataclass(frozen=True)
class Place:
    """A plan with its latency model."""

    plan: Plan
    latency: LatencyModel


@dataclass(frozen=True)
class _Served:
    """What a site or the centre did."""

    requests: pd.DataFrame
    gpu_hours: float
    cost_usd: float
    up_s: float
    busy_s: float
    active_s: float
    now_s: float


def simulate_edge(
    centre: Place,
    site: Place,
    edge: Edge,
    workload: Workload,
    *,
    cluster: Cluster,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """One seed of an edge with its centre, as `simulate` has it for a fleet.

    Where nothing can go to the centre there is none, and its GPUs are not paid for.

    Returns: {metric: value}, those of a fleet as far as they add up, with overflow_share and
             centre_share: requests that the sites passed on, and all that the centre got.
    Raises:  InputError: conversations, clients who come again, a closed loop, a network of its own
             (the edge has them), or no requests.
    """
    _check(workload)
    entropy = workload.seed + seed
    drawn = workload.at(seed=entropy).schedule()
    streams = np.random.SeedSequence(entropy, spawn_key=(_EDGE_STREAM,)).spawn(4)
    homes, able, near, far = (np.random.default_rng(stream) for stream in streams)
    n = len(drawn)
    home = zipf_ranks(n, edge.sites, edge.site_zipf, homes)
    small = able.random(n) < edge.small_model_share
    near_s, far_s = edge.to_site.round_trip.draw(n, near), edge.to_centre.round_trip.draw(n, far)
    plan = _overflowing(site.plan, edge)
    parts: list[_Served] = []
    to_centre = [np.flatnonzero(~small)]
    for number in range(edge.sites):
        rows = np.flatnonzero((home == number) & small)
        served = _serve(Place(plan, site.latency), drawn, rows, near_s, workload, cluster, entropy)
        refused = (served.requests["outcome"] == "rejected").to_numpy()
        passed_on = edge.overflow.rule == "queue"
        if passed_on:
            to_centre.append(rows[refused])
        kept = served.requests[~refused] if passed_on else served.requests
        parts.append(replace(served, requests=kept))
        if on_progress is not None:
            on_progress((number + 1) / (edge.sites + 1))
    overflow = sum(len(rows) for rows in to_centre[1:])
    rows = np.sort(np.concatenate(to_centre))
    if edge.overflow.rule == "queue" or edge.small_model_share < 1:
        parts.append(_serve(centre, drawn, rows, far_s, workload, cluster, entropy))
    shares = {"overflow_share": overflow / max(n, 1), "centre_share": len(rows) / max(n, 1)}
    return {**_metrics(parts, centre.plan, workload), **shares}


def _check(workload: Workload) -> None:
    wrong = {
        "sessions": workload.sessions is not None,
        "clients": workload.clients is not None,
        "network": workload.network is not None,
        "arrivals": isinstance(workload.arrivals, ClosedLoop),
    }
    for name, given in wrong.items():
        if given:
            raise InputError(
                f"{name} of the workload cannot be had with an edge",
                remedy="Leave it out; round trips are the edge's.",
            )


def _overflowing(plan: Plan, edge: Edge) -> Plan:
    if edge.overflow.rule == "never":
        return plan
    most = plan.engine.max_num_seqs + edge.overflow.waiting + 1
    gateway = plan.gateway.model_copy(update={"max_outstanding": most})
    return plan.model_copy(update={"gateway": gateway})


def _serve(
    place: Place,
    drawn: Schedule,
    rows: IntArray,
    round_trip_s: FloatArray,
    workload: Workload,
    cluster: Cluster,
    entropy: int,
) -> _Served:
    """Some of the requests at one place."""
    schedule = replace(drawn.take(rows), network_s=round_trip_s[rows])
    plan = place.plan
    if len(schedule):
        check_lengths(schedule, place.latency, plan.engine)
    fleet = Fleet(
        plan,
        schedule,
        place.latency,
        cluster,
        controller_of(plan, cluster),
        duration_s=workload.duration_s,
        rng=phases(entropy),
    )
    fleet.run()
    requests = as_users_see(
        request_frame(fleet.data.requests, asked_s=fleet.data.asked_s), schedule
    )
    gpu_hours = fleet.gpu_hours_a_day()
    return _Served(
        requests,
        gpu_hours,
        gpu_hours * plan.gpu_usd_per_hour,
        fleet.served_s(),
        fleet.busy_s,
        fleet.active_s,
        fleet.data.now_s,
    )


def _metrics(parts: list[_Served], plan: Plan, workload: Workload) -> dict[str, float]:
    requests = pd.concat([part.requests for part in parts], ignore_index=True)
    counted = requests[requests["arrived_at_s"] >= workload.warmup_s]
    if counted.empty:
        raise InputError(
            f"the workload sends nothing after warmup_s(={workload.warmup_s})",
            remedy="Lengthen duration_s or raise the rate.",
        )
    up_s = sum(part.up_s for part in parts)
    return {
        **user_metrics(counted, plan.slo, parts[0].now_s),
        "gpu_hours": sum(part.gpu_hours for part in parts),
        "cost_usd": sum(part.cost_usd for part in parts),
        "replicas_mean": up_s / workload.duration_s,
        "gpu_utilisation_mean": sum(part.busy_s for part in parts) / up_s,
        "idle_share": 1 - sum(part.active_s for part in parts) / up_s,
    }
