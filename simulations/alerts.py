"""The alerts of the article, over what a simulated day would have shown."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

MEAN_TTFT = "mean_ttft_over_500ms"
P99_TTFT = "p99_ttft_over_500ms"
GPU_BUSY = "gpu_utilisation_over_85_percent"
VOLUME_DROP = "request_volume_fell_20_percent"

LATENCY_LIMIT_S = 0.5
BUSY_LIMIT = 0.85
DROP = 0.2
MEAN_WINDOW_S = 60.0
LONG_WINDOW_S = 300.0

Alert = tuple[str, float, float]
Flags = npt.NDArray[np.bool_]


def alerts(requests: pd.DataFrame, timeline: pd.DataFrame, duration_s: float) -> pd.DataFrame:
    """Which alerts fire, and when.

    TTFT: mean over each minute and P99 over each five minutes, by the time of the first token. GPU
    utilisation: mean over pods above 85 % in every scrape of five minutes. Volume: requests of
    five minutes at least 20 % below those of the five before; at few requests that is chance (the
    rule is kept literal).

    Args:    requests: first_token_s, ttft_s, arrived_at_s; NaN where it never happened.
             timeline: t_s and gpu_utilisation (0 to 1) per scrape.
    Returns: DataFrame alert, started_at_s, ended_at_s, by start. Neighbouring windows are one
             alert.
    """
    rows: list[Alert] = []
    answered = requests.dropna(subset=["first_token_s"])
    for name, window_s, statistic in (
        (MEAN_TTFT, MEAN_WINDOW_S, np.mean),
        (P99_TTFT, LONG_WINDOW_S, lambda values: np.percentile(values, 99)),
    ):
        window = (answered["first_token_s"] // window_s).astype(int)
        high = answered["ttft_s"].groupby(window).agg(statistic) > LATENCY_LIMIT_S
        flags = high.reindex(range(int(duration_s // window_s) + 1), fill_value=False).to_numpy()
        rows += _runs(name, flags, np.arange(len(flags)) * window_s, window_s)
    rows += _busy(timeline)
    counts = np.bincount((requests["arrived_at_s"] // LONG_WINDOW_S).astype(int))
    whole = counts[: int(duration_s // LONG_WINDOW_S)]
    fell = np.append(False, whole[1:] <= (1 - DROP) * whole[:-1])[: len(whole)]
    rows += _runs(VOLUME_DROP, fell, np.arange(len(fell)) * LONG_WINDOW_S, LONG_WINDOW_S)
    table = pd.DataFrame(rows, columns=["alert", "started_at_s", "ended_at_s"])
    return table.sort_values(["started_at_s", "alert"], ignore_index=True)


def _runs(
    name: str, flags: Flags, starts_s: npt.NDArray[np.floating], window_s: float
) -> list[Alert]:
    """One row per run of raised flags."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int64), [0]]))
    return [
        (name, float(starts_s[first]), float(starts_s[last]) + window_s)
        for first, last in zip(
            np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1, strict=True
        )
    ]


def _busy(timeline: pd.DataFrame) -> list[Alert]:
    """Runs of busy scrapes that last five minutes; the alert fires when they have lasted."""
    high = (timeline["gpu_utilisation"] > BUSY_LIMIT).to_numpy()
    runs = _runs(GPU_BUSY, high, timeline["t_s"].to_numpy(), 0.0)
    return [
        (name, started_s + LONG_WINDOW_S, ended_s)
        for name, started_s, ended_s in runs
        if ended_s - started_s >= LONG_WINDOW_S
    ]
