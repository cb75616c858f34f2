"""The validity gate: reasons why a run must not be trusted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulations.traffic import ClosedLoop, Workload
from workbench.measure.measurement import Mode

MIN_REQUESTS = 20
MAX_LATENESS_S = 5e-3
MAX_LATENESS_SHARE = 0.1


def doubts(requests: pd.DataFrame, workload: Workload, mode: Mode) -> list[str]:
    """What speaks against a run, one line each; nothing if it can be trusted.

    Args:    requests: as in `Measurement.requests`.
    """
    counted = requests[requests["counted"]]
    found = []
    failed = counted[counted["error"].notna()]
    if len(failed):
        found.append(f"{len(failed)} of {len(counted)} requests failed: {failed['error'].iloc[0]}")
    answered = counted[counted["error"].isna()]
    short = answered[answered["output_tokens"] != answered["asked_output_tokens"]]
    if len(short):
        first = short.iloc[0]
        found.append(
            f"{len(short)} of {len(counted)} requests came back with another length than asked"
            f" (the first: {first['output_tokens']} for {first['asked_output_tokens']} tokens)"
        )
    if mode == "server":
        if len(counted) < MIN_REQUESTS:
            found.append(
                f"{len(counted)} requests are too few (at least {MIN_REQUESTS}): measure for longer"
            )
        if not isinstance(workload.arrivals, ClosedLoop):
            found += _late(counted)
    elif not len(counted):
        found.append("no request was counted")
    return found


def _late(counted: pd.DataFrame) -> list[str]:
    """An open loop that sends late measures the client. (Offline, requests wait for a step's end.)"""
    lateness_s = (counted["sent_s"] - counted["scheduled_s"]).dropna().to_numpy()
    if len(lateness_s) < 2:
        return []
    mean_gap_s = float(np.ptp(counted["scheduled_s"].to_numpy())) / (len(counted) - 1)
    p99_s = float(np.percentile(lateness_s, 99))
    if p99_s <= max(MAX_LATENESS_S, MAX_LATENESS_SHARE * mean_gap_s):
        return []
    return [
        f"the client sent late (p99 {p99_s * 1e3:.1f} ms, mean gap {mean_gap_s * 1e3:.1f} ms):"
        " the machine is busy with something else"
    ]
