"""Figures of what was simulated, tuned and verified, for the report and for notebooks alike."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from serving.plan import Slo
from simulations import theme
from simulations.result import Prediction

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.tune import Tuning
    from workbench.verify import Verification

METRIC_NAMES = {
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "tpot_p50_s": "TPOT p50",
    "tpot_p99_s": "TPOT p99",
    "e2e_p50_s": "E2E p50",
    "e2e_p99_s": "E2E p99",
    "output_tokens_per_s": "output tokens/s",
}

_MANY_NAMES = 480
"""Height of a figure whose legend names every fleet: on a phone one below the other."""


def candidates(tuning: Tuning) -> pd.DataFrame:
    """The baselines and the winner in one table, the cheapest first.

    Returns: columns name, gpu_hours, cost_usd, ttft_p99_s, slo_attainment, keeps_slo, is_winner.
    """
    result = tuning.winner_result
    columns = ["gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment"]
    winner: dict[str, Any] = {name: result.metrics[name].value for name in columns}
    winner |= {"name": tuning.winner.name, "keeps_slo": result.keeps_slo}
    others = tuning.baselines[tuning.baselines["name"] != tuning.winner.name]
    known = others[["name", *columns, "keeps_slo"]].assign(is_winner=False)
    own = pd.DataFrame([winner]).assign(is_winner=True)
    table: pd.DataFrame = pd.concat([known, own], ignore_index=True)
    return table.sort_values("gpu_hours", kind="stable", ignore_index=True)


def cost_against_latency(tuning: Tuning, slo: Slo) -> go.Figure:
    """Every trial by its GPU hours and p99 TTFT, with the baselines and the winner."""
    trials = tuning.trials.dropna(subset=["gpu_hours", "ttft_p99_s"])
    others = candidates(tuning)
    figure = theme.canvas(
        "What the search tried",
        theme.axis("GPU hours per day", rangemode="tozero"),
        theme.log_axis("TTFT p99 (s)", [*trials["ttft_p99_s"], *others["ttft_p99_s"]]),
        height=_MANY_NAMES,
    )
    kept = trials["keeps_slo"].eq(True)
    for keeps, name, symbol, colour in (
        (True, "trial, keeps the SLO", "circle", theme.BLUE),
        (False, "trial, breaks it", "x-thin-open", theme.GREY),
    ):
        part = trials[kept == keeps]
        figure.add_scatter(
            x=part["gpu_hours"],
            y=part["ttft_p99_s"],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": 8, "opacity": 0.75},
            customdata=part["number"],
            hovertemplate="trial %{customdata}: %{x:.1f} GPU hours, %{y:.3g} s",
        )
    _mark(figure, others, "ttft_p99_s", "%{y:.3g} s")
    for row in others[others["ttft_p99_s"].isna()].to_dict("records"):
        figure.add_vline(
            x=row["gpu_hours"],
            line={"color": theme.GREEN, "width": 1.5, "dash": "dot"},
            name=row["name"],
            showlegend=True,
        )
    if slo.ttft_p99_s is not None:
        theme.limit_line(figure, slo.ttft_p99_s, "SLO TTFT p99")
    return figure


def cost_against_attainment(tuning: Tuning) -> go.Figure:
    """Every trial by its GPU hours and the share of requests within the SLO, and the Pareto front."""
    trials, front = tuning.trials, tuning.front()
    figure = theme.canvas(
        "What attainment costs",
        theme.axis("GPU hours per day", rangemode="tozero"),
        theme.axis("requests within the SLO", tickformat=".1%"),
        height=_MANY_NAMES,
    )
    figure.add_scatter(
        x=trials["gpu_hours"],
        y=trials["slo_attainment"],
        mode="markers",
        name="trial",
        marker={"color": theme.GREY, "size": 7, "opacity": 0.6},
        customdata=trials["number"],
        hovertemplate="trial %{customdata}: %{x:.1f} GPU hours, %{y:.2%}",
    )
    figure.add_scatter(
        x=front["gpu_hours"],
        y=front["slo_attainment"],
        mode="lines+markers",
        name="Pareto front",
        line={"color": theme.BLUE, "width": 2, "shape": "hv"},
        customdata=front["number"],
        hovertemplate="trial %{customdata}: %{x:.1f} GPU hours, %{y:.2%}",
    )
    _mark(figure, candidates(tuning), "slo_attainment", "%{y:.2%}")
    return figure


def _mark(figure: go.Figure, others: pd.DataFrame, y: str, told: str) -> None:
    """The winner as a star and what it is held against as diamonds, over GPU hours; each once."""
    looks = theme.looks(others.loc[~others["is_winner"], "name"])
    for row in others.dropna(subset=[y]).to_dict("records"):
        won = row["is_winner"]
        figure.add_scatter(
            x=[row["gpu_hours"]],
            y=[row[y]],
            mode="markers",
            name="winner" if won else row["name"],
            marker={
                "symbol": "star" if won else "diamond",
                "size": 17 if won else 11,
                "color": theme.VERMILION if won else looks[row["name"]].colour,
                "line": {"width": 1, "color": "white"},
            },
            hovertemplate=f"%{{x:.1f}} GPU hours, {told}",
        )


def cost_of_candidates(tuning: Tuning) -> go.Figure:
    """GPU hours a day of each candidate, attainment below them; hatched where it breaks the SLO."""
    table = candidates(tuning).iloc[::-1]
    keeps = table["keeps_slo"].eq(True)
    figure = theme.canvas(
        "Cost a day, and requests within the SLO",
        # Room for the labels, which stand outside the bars.
        theme.axis("GPU hours per day", range=[0, 1.65 * table["gpu_hours"].max()]),
        theme.axis("", ticklabelstandoff=6, categoryarray=list(table["name"])),
        height=max(380, 130 + 40 * len(table)),
        barmode="overlay",
    )
    won = table["is_winner"]
    for name, part, colour, hatch in (
        ("winner", won, theme.VERMILION, ""),
        ("keeps the SLO", keeps & ~won, theme.BLUE, ""),
        ("breaks the SLO", ~keeps & ~won, theme.GREY, "/"),
    ):
        rows = table[part]
        if rows.empty:
            continue
        figure.add_bar(
            x=rows["gpu_hours"],
            y=rows["name"],
            name=name,
            orientation="h",
            text=[
                f"{hours:,.0f} h{_attainment(share)}"
                for hours, share in zip(rows["gpu_hours"], rows["slo_attainment"], strict=True)
            ],
            textposition="outside",
            constraintext="none",
            cliponaxis=False,
            marker={
                "color": colour,
                "pattern": {"shape": hatch, "bgcolor": colour, "fgcolor": "white"},
            },
            hovertemplate="%{y}: %{x:.1f} GPU hours",
        )
    return figure


def sensitivity(tuning: Tuning) -> go.Figure:
    """What one step in each parameter changes in the winner's cost; hatched where it breaks the SLO."""
    table = tuning.neighbours.dropna(subset=["cost_change"])
    widest = table["cost_change"].abs().groupby(table["parameter"]).max().sort_values()
    figure = theme.canvas(
        "One step beside the winner (✗ breaks SLO)",
        theme.axis("change of GPU hours (%)", zeroline=True),
        theme.axis(
            "",
            ticklabelstandoff=6,
            categoryarray=list(widest.index),
            tickvals=list(widest.index),
            ticktext=[_narrow(name) for name in widest.index],
        ),
        height=max(300, 130 + 40 * len(widest)),
        barmode="group",
    )
    for side, name, colour in (
        (-1, "one step down", theme.SKY),
        (1, "one step up", theme.BLUE),
        (0, "the next best", theme.GREEN),
    ):
        rows = table[table["side"] == side]
        if side == 0 and rows.empty:
            continue
        breaks = ~rows["keeps_slo"].astype(bool)
        figure.add_bar(
            x=100 * rows["cost_change"],
            y=rows["parameter"],
            name=name,
            orientation="h",
            text=np.where(breaks, "✗", ""),
            textposition="outside",
            constraintext="none",
            cliponaxis=False,
            marker={
                "color": colour,
                "pattern": {
                    "shape": list(np.where(breaks, "/", "")),
                    "bgcolor": colour,
                    "fgcolor": "white",
                },
            },
            customdata=rows[["step"]],
            hovertemplate="%{y} at %{customdata[0]}: %{x:+.1f} %",
        )
    return figure


def prediction_check(verification: Verification, prediction: Prediction | None = None) -> go.Figure:
    """Measured over predicted for each metric, within what was tolerated.

    The wide band is the tolerance, the narrow one the interval of the prediction over seeds.
    """
    rows = verification.rows.iloc[::-1]
    names = [METRIC_NAMES.get(name, name) for name in rows["metric"]]
    figure = theme.canvas(
        "Measured against predicted",
        theme.axis("deviation (%)"),
        theme.axis("", ticklabelstandoff=6),
        height=max(280, 120 + 34 * len(rows)),
        barmode="overlay",
    )
    low = 100 * (rows["low"] / rows["predicted"] - 1)
    high = 100 * (rows["high"] / rows["predicted"] - 1)
    bars = (
        ("tolerance", -100 * rows["tolerance"], 200 * rows["tolerance"], 0.75, "0.16"),
        ("predicted interval", low, high - low, 0.3, "0.55"),
    )
    for name, base, width, thickness, opacity in bars:
        figure.add_bar(
            x=width,
            base=base,
            y=names,
            orientation="h",
            name=name,
            width=thickness,
            marker={"color": f"rgba(86,180,233,{opacity})"},
            hoverinfo="skip",
        )
    deviation = 100 * (rows["measured"] / rows["predicted"] - 1)
    holds = rows["holds"].astype(bool).to_numpy()
    for keeps, name, symbol, colour in (
        (True, "measured, holds", "circle", theme.GREEN),
        (False, "measured, does not hold", "x", theme.VERMILION),
    ):
        if not (holds == keeps).any():
            continue
        figure.add_scatter(
            x=deviation[holds == keeps],
            y=[label for label, hold in zip(names, holds, strict=True) if hold == keeps],
            mode="markers",
            name=name,
            marker={"symbol": symbol, "color": colour, "size": 11},
            hovertemplate="%{y}: %{x:+.1f} %",
        )
    return figure


def _narrow(parameter: str) -> str:
    """A parameter's name in lines that leave room for bars on a phone."""
    return "<br>".join(textwrap.wrap(parameter.replace("_", " "), 20))


def _attainment(share: float) -> str:
    return "" if pd.isna(share) else f"<br>{100 * share:.4g} %"
