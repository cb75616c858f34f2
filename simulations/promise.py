"""What an SLO binds, and whether a result keeps it: one definition for the twin and the search.

Latencies are of answered requests only, so the shares of lost requests are limits too: else turning
requests away would look fast and cheap.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.plan import Slo
from serving.values import Estimate

_SHARES = {"error_share": ("failed", "rejected", "unfinished"), "timeout_share": ("aborted",)}


def limits_of(slo: Slo) -> dict[str, float]:
    """Every limit that binds: latencies in seconds, and shares of lost requests."""
    return slo.limits() | {name: getattr(slo, f"max_{name}") for name in _SHARES}


def lost_shares(row: Mapping[str, float]) -> dict[str, float]:
    """Shares of lost requests, from the shares of `SimResult.metrics`."""
    return {name: sum(row.get(part, 0.0) for part in parts) for name, parts in _SHARES.items()}


def reached(metrics: Mapping[str, Estimate], slo: Slo) -> dict[str, float]:
    """What a result comes to for each limit: the upper end of latencies, the mean of shares.

    A metric that no request had binds nothing (TPOT of one token).
    """
    highs = {name: metrics[name].high for name in slo.limits() if name in metrics}
    return highs | lost_shares({name: found.value for name, found in metrics.items()})


def broken(metrics: Mapping[str, Estimate], slo: Slo) -> dict[str, float]:
    """What a result comes to for each limit that it breaks; empty where it keeps the SLO."""
    limits = limits_of(slo)
    return {name: value for name, value in reached(metrics, slo).items() if value > limits[name]}
