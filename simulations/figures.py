"""Figures of what is simulated: a day of a fleet, and how long a step takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simulations import theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from simulations.latency import LatencyModel
    from simulations.result import SimResult

_MOST_MOMENTS = 1_440


def fleets_over_day(results: Sequence[SimResult], sustained_rps: float | None = None) -> go.Figure:
    """Offered rate above; below the ready replicas of each plan, beside what the rate needs.

    Args:    results: of several plans under the same traffic; the rate is the first one's.
             sustained_rps: what one replica takes within the SLO; None draws no need.
    """
    table = thinned(results[0].timeline)
    figure = day_canvas("One simulated day", table)
    needed = None if sustained_rps is None else np.ceil(table["offered_rps"] / sustained_rps)
    if needed is not None:
        figure.add_scatter(
            x=table["t_s"] / 3600,
            y=needed,
            name="needed for the rate",
            yaxis="y2",
            fill="tozeroy",
            fillcolor="rgba(128,134,145,0.25)",
            line={"color": theme.GREY, "width": 0.5, "shape": "hv"},
            hovertemplate="%{y:.0f} needed",
        )
    looks = theme.looks(result.plan_name for result in results)
    for result in results:
        own = thinned(result.timeline)
        figure.add_scatter(
            x=own["t_s"] / 3600,
            y=own["replicas_ready"],
            name=result.plan_name,
            yaxis="y2",
            line={"color": looks[result.plan_name].colour, "width": 2, "shape": "hv"},
            hovertemplate="%{y:.0f} ready",
        )
    return figure


def thinned(timeline: pd.DataFrame) -> pd.DataFrame:
    """At most so many moments that a figure of a day stays small."""
    return timeline.iloc[:: max(1, -(-len(timeline) // _MOST_MOMENTS))]


def day_canvas(title: str, table: pd.DataFrame) -> go.Figure:
    """The offered rate in the upper half, and an empty axis y2 for replicas below."""
    hours = table["t_s"] / 3600
    figure = theme.canvas(
        title,
        theme.axis("hours", anchor="y2", dtick=4 if hours.max() > 12 else None),
        theme.axis("requests per second", domain=[0.62, 1.0], rangemode="tozero"),
        yaxis2=theme.axis("replicas", domain=[0, 0.52], rangemode="tozero", anchor="x"),
        height=460,
        hovermode="x",
    )
    figure.update_layout(legend_y=-0.14)
    figure.add_scatter(
        x=hours,
        y=table["offered_rps"],
        name="offered rate",
        fill="tozeroy",
        fillcolor="rgba(86,180,233,0.25)",
        line={"color": theme.SKY, "width": 1.2},
        hovertemplate="%{y:.1f} requests/s",
    )
    return figure


def replicas_over_day(result: SimResult) -> go.Figure:
    """Offered rate above, replicas that are ready and that the autoscaler wants below."""
    table = thinned(result.timeline)
    hours = table["t_s"] / 3600
    figure = day_canvas(f"One simulated day of {result.plan_name}", table)
    for column, name, colour, dash in (
        ("replicas_desired", "replicas wanted", theme.ORANGE, "dot"),
        ("replicas_ready", "replicas ready", theme.BLUE, "solid"),
    ):
        figure.add_scatter(
            x=hours,
            y=table[column],
            name=name,
            yaxis="y2",
            line={"color": colour, "dash": dash, "width": 2, "shape": "hv"},
            hovertemplate="%{y:.0f}",
        )
    return figure


def decode_step_time(
    model: LatencyModel, contexts_tokens: Sequence[int] = (128, 1024, 8192)
) -> go.Figure:
    """Time of a step that only decodes by batch size, a line per context, within what was fitted."""
    limits = model.fitted_range
    figure = theme.canvas(
        f"{model.variant}: what a decode step takes",
        theme.axis("decoding sequences in the step"),
        theme.axis("step time (ms)", rangemode="tozero"),
    )
    seqs = np.unique(np.linspace(1, limits.decode_seqs, 128).round())
    for tokens, colour in zip(contexts_tokens, (theme.SKY, theme.BLUE, theme.ORANGE), strict=False):
        inside = seqs[seqs * tokens <= limits.kv_tokens]
        figure.add_scatter(
            x=inside,
            y=1e3 * model.step_time_s(0, inside, inside * tokens),
            name=f"{tokens:,} tokens each",
            mode="lines",
            line={"color": colour, "width": 2},
            hovertemplate="%{x:.0f} sequences: %{y:.2f} ms",
        )
    return figure
