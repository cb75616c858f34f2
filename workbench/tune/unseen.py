"""How much of what the search promised is left on traffic that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from simulations.result import SimResult

_COMPARED = ("gpu_hours", "cost_usd", "slo_attainment", "ttft_p99_s", "tpot_p99_s", "e2e_p99_s")
COLUMNS = [
    *("parameter", "side", "value", "won", "step", "seeds"),
    *("gpu_hours", "cost_change", "slo_attainment", "keeps_slo", "breaks"),
]
"""Of the winner's neighbours."""


def generalisation(seen: Mapping[str, float], result: SimResult) -> pd.DataFrame:
    """The winner on the seeds of the search and on others.

    Args:    seen: {name: mean over the seeds of the search}.
             result: of the same plan on unseen traffic.
    Returns: DataFrame: metric, seen, unseen, low and high (its interval), change (unseen / seen - 1).
    """
    rows = []
    for name in _COMPARED:
        if name in seen and name in result.metrics:
            found, before = result.metrics[name], seen[name]
            change = found.value / before - 1 if before > 0 else float("nan")
            rows.append((name, before, found.value, found.low, found.high, change))
    return pd.DataFrame(rows, columns=["metric", "seen", "unseen", "low", "high", "change"])


def generalisation_in_words(table: pd.DataFrame, seeds: tuple[int, int], passed_over: int) -> str:
    """Cost and attainment on both, and what is lost; empty where one of them is not known.

    Args:    seeds: how many of the search, and how many others.
    """
    rows = {row["metric"]: row for row in table.to_dict("records")}
    if not {"gpu_hours", "slo_attainment"} <= set(rows):
        return ""
    cost, met = rows["gpu_hours"], rows["slo_attainment"]
    lost = 100 * (met["seen"] - met["unseen"])
    said = (
        f"On the search's own traffic ({_seeds(seeds[0])}) the winner costs {cost['seen']:,.1f} GPU"
        f" hours a day and {100 * met['seen']:.2f} % of the requests meet the SLO; on traffic that"
        f" the search has not seen ({_seeds(seeds[1])}) it is {cost['unseen']:,.1f}"
        f" ({100 * cost['change']:+.1f} %) and {100 * met['unseen']:.2f} %:"
        f" {abs(lost):.2f} points are {'lost' if lost >= 0 else 'gained'}."
    )
    if passed_over:
        several = "trials" if passed_over > 1 else "trial"
        said += (
            f" {passed_over} cheaper {several} kept the SLO in the search and broke it on the seeds"
            " of the final choice, which are others again."
        )
    return said


def _seeds(count: int) -> str:
    return f"{count} seed" + ("s" if count != 1 else "")
