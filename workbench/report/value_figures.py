"""Figures of single values: the requests of a measurement, a search for the capacity, a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulations import theme
from workbench.report.figures import LATENCIES

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from serving.plan import Slo
    from workbench.measure import Measurement
    from workbench.measure.capacity import Capacity
    from workbench.measure.compare import Comparison


def latency_shares(measurement: Measurement, slo: Slo | None = None) -> go.Figure:
    """Share of the counted requests that were answered within a time, for TTFT, TPOT and E2E.

    Args:    slo: its limits are drawn as diamonds at the percentile that they bind.
    """
    done = measurement.latencies()
    values_ms = {
        name: np.sort(1e3 * done[f"{name}_s"].dropna().to_numpy(dtype=float)) for name in LATENCIES
    }
    figure = theme.canvas(
        f"{measurement.name}: how long requests took",
        theme.log_axis("milliseconds", np.concatenate(list(values_ms.values()))),
        theme.axis("share of requests within", tickformat=".0%", range=[0, 1.02]),
    )
    limits = slo.limits() if slo else {}
    for (name, look), values in zip(
        theme.looks(LATENCIES.values()).items(), values_ms.values(), strict=True
    ):
        figure.add_scatter(
            x=values,
            y=np.arange(1, len(values) + 1) / max(len(values), 1),
            name=name,
            mode="lines",
            line={"color": look.colour, "width": 2, "shape": "hv"},
            hovertemplate="%{y:.1%} within %{x:.3g} ms",
        )
    for short, name in LATENCIES.items():
        limit_s = limits.get(f"{short}_p99_s")
        if limit_s is not None:
            figure.add_scatter(
                x=[1e3 * limit_s],
                y=[0.99],
                name=f"SLO {name} p99",
                mode="markers",
                marker={"symbol": "diamond", "size": 11, "color": theme.VERMILION},
            )
    return figure


def attainment_by_rate(capacity: Capacity) -> go.Figure:
    """Share of requests within the SLO by rate, all runs of a rate together, and what is asked."""
    last = capacity.runs.drop_duplicates("rate_rps", keep="last").sort_values("rate_rps")
    figure = theme.canvas(
        "Which rate keeps the SLO",
        theme.axis("offered rate (requests per second)"),
        theme.axis("share of requests within the SLO", tickformat=".1%"),
    )
    middle = (last["low"] + last["high"]) / 2
    figure.add_scatter(
        x=last["rate_rps"],
        y=middle,
        error_y={"array": (last["high"] - last["low"]) / 2, "thickness": 1.5},
        mode="markers",
        name=f"{capacity.confidence:.0%} interval of all runs",
        marker={"color": theme.BLUE, "symbol": "line-ew-open", "size": 8},
        customdata=last["verdict"],
        hovertemplate="%{x:.3g} requests/s: %{customdata}",
    )
    figure.add_scatter(
        x=capacity.runs["rate_rps"],
        y=capacity.runs["attainment"],
        mode="markers",
        name="single run",
        marker={"color": theme.GREY, "size": 7, "opacity": 0.7},
        hovertemplate="%{x:.3g} requests/s: %{y:.2%}",
    )
    theme.limit_line(figure, capacity.attainment, f"asked: {capacity.attainment:.4g}")
    figure.add_vline(x=capacity.rate_rps, line={"color": theme.GREEN, "width": 1.5, "dash": "dot"})
    return figure


def ratios(comparison: Comparison) -> go.Figure:
    """Ratio b over a of each metric with its interval; the line at 1 is no difference."""
    rows = comparison.rows.iloc[::-1]
    figure = theme.canvas(
        f"{comparison.b} over {comparison.a}",
        theme.axis("ratio"),
        theme.axis("", ticklabelstandoff=6, type="category"),
        height=max(260, 120 + 34 * len(rows)),
    )
    figure.add_scatter(
        x=rows["ratio"],
        y=rows["metric"],
        error_x=theme.error_bars(rows["ratio"], rows["low"], rows["high"], thickness=1.5),
        mode="markers",
        name="ratio with its 95 % interval",
        marker={"color": theme.BLUE, "size": 9},
        customdata=rows["verdict"],
        hovertemplate="%{y}: %{x:.3f}× (%{customdata})",
    )
    figure.add_vline(x=1, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    return figure
