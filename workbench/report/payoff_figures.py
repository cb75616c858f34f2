"""Figures of the payoff map: quality against speed at each end of the load, speed-up over the load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from simulations import theme
from workbench.report.lineage_figures import lineage_figure, recovery_by_tokens

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.measure.study import StudyResult
    from workbench.payoff import Payoff

_FLOOR = 0.8
"""Share of the score where the axis of quality ends, if something lies below and something above."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { color-scheme: light dark }
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem;
 line-height: 1.5 }
table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884 }
td:first-child, th:first-child { text-align: left; white-space: pre }</style>
</head><body><h1>{{ question }}</h1><p>{{ words }}</p>
{% for figure in figures %}{{ figure|safe }}{% endfor %}
<h2>What they keep</h2>{{ lineage|safe }}
<p>{{ judged_on }}</p>
<h2>Every load</h2>{{ table|safe }}
<h2>Measured on</h2><ul>{% for one in environments %}<li>{{ one }}</li>{% endfor %}</ul>
<p>Seed {{ seed }}, {{ repeats }} repeats. Speed-ups are to {{ parent }}, on the same prompts; intervals
are 95 %, Student's t over repeats. Left out: {{ left_out }} points that cannot be trusted,
{{ failed }} that failed.</p></body></html>
"""


def payoff_figures(payoff: Payoff) -> list[go.Figure]:
    """One pair per lengths: quality against speed, and speed-up by batch."""
    figures = []
    for (prompt, output), rows in payoff.table.groupby(
        ["prompt_tokens", "output_tokens"], sort=False
    ):
        lengths = f"{prompt:g} → {output:g} tokens"
        figures += [
            quality_against_speed(payoff, rows, batch, lengths)
            for batch in dict.fromkeys((rows["batch"].min(), rows["batch"].max()))
            if "recovery" in rows
        ]
        figures.append(speedup_by_batch(payoff, rows, lengths))
    return figures


def quality_against_speed(
    payoff: Payoff, rows: pd.DataFrame, batch: float, lengths: str
) -> go.Figure:
    """One point per variant, bars on both axes, and the front as steps."""
    at = rows[rows["batch"] == batch].dropna(subset=["recovery"])
    looks = _looks(payoff)
    figure = theme.canvas(
        f"Quality by speed, batch {batch:g}, {lengths}",
        theme.axis(f"speed-up over {payoff.parent} (×)"),
        theme.axis("score kept (% of parent)"),
        height=460,
    )
    front = at[at["on_front"]].sort_values("speedup")
    figure.add_scatter(
        x=front["speedup"],
        y=100 * front["recovery"],
        mode="lines",
        name="the front: nothing is better in both",
        line={"color": theme.GREY, "dash": "dot", "shape": "vh"},
        hoverinfo="skip",
    )
    # One variant that lost nearly everything would press all others into a line.
    floor = _FLOOR if (at["recovery"] < _FLOOR).any() and (at["recovery"] > _FLOOR).any() else 0.0
    for row in at.to_dict("records"):
        look, kept, below = (
            looks[str(row["variant"])],
            100 * row["recovery"],
            row["recovery"] < floor,
        )
        mark = f" ({row['quality']}, below the axis: {kept:.3g} %)" if below else _mark(row)
        figure.add_scatter(
            x=[row["speedup"]],
            y=[100 * floor if below else kept],
            name=f"{row['variant']}{mark}",
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 10},
            error_x=_bar(row["speedup"], row["low"], row["high"]),
            error_y={}
            if below
            else _bar(kept, 100 * row["recovery_low"], 100 * row["recovery_high"]),
            customdata=[kept],
            cliponaxis=False,
            hovertemplate="%{x:.2f}×, %{customdata:.1f} % kept",
        )
    if floor:
        figure.update_yaxes(range=[100 * floor, 100 * at["recovery_high"].max() + 1])
    figure.add_vline(x=1, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    theme.limit_line(
        figure, 100 * (1 - payoff.max_quality_loss), "allowed loss of quality", right=True
    )
    return figure


def speedup_by_batch(payoff: Payoff, rows: pd.DataFrame, lengths: str) -> go.Figure:
    """A line per variant; where lines cross, the order changes with the load."""
    looks = _looks(payoff)
    figure = theme.canvas(
        f"Speed-up by batch size, {lengths}",
        theme.batch_axis(rows["batch"]),
        theme.axis(f"speed-up over {payoff.parent} (×)"),
        height=460,
    )
    for name, track in rows[rows["variant"] != payoff.parent].groupby("variant", sort=False):
        look, track = looks[str(name)], track.sort_values("batch")
        figure.add_scatter(
            x=track["batch"],
            y=track["speedup"],
            name=str(name),
            mode="lines+markers",
            line={"color": look.colour, "width": 2},
            marker={"symbol": look.symbol, "size": 8},
            error_y=theme.error_bars(track["speedup"], track["low"], track["high"], thickness=1),
            hovertemplate="batch %{x}: %{y:.2f}×",
        )
    figure.add_hline(y=1, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    return figure


def payoff_page(payoff: Payoff, result: StudyResult, out: Path) -> Path:
    """Write question, answer, figures, lineage and table: one HTML file that needs nothing else."""
    import jinja2

    from workbench.tables import payoff_table, variant_table

    learnt = recovery_by_tokens(payoff.variants)
    drawn = [
        *payoff_figures(payoff),
        lineage_figure(payoff.variants, payoff.max_quality_loss),
        *([learnt] if learnt is not None else []),
    ]
    figures = [
        figure.to_html(full_html=False, include_plotlyjs=(i == 0), config={"displaylogo": False})
        for i, figure in enumerate(drawn)
    ]
    lineage = variant_table(payoff.variants, payoff.max_quality_loss)
    judged_on = sorted({v.quality.judged_on for v in payoff.variants if v.quality})
    text = (
        jinja2.Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            title=result.study.name,
            question=result.study.question,
            words=payoff.words(),
            figures=figures,
            lineage=_html(lineage),
            judged_on="Judged through vLLM on " + "; ".join(judged_on) if judged_on else "",
            table=_html(payoff_table(payoff)),
            environments=sorted({m.environment.describe() for m in result.measurements}),
            seed=result.study.seed,
            repeats=result.study.repeats,
            parent=payoff.parent,
            left_out=sum(bool(m.invalid) for m in result.measurements),
            failed=len(result.failures),
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(out)


def _html(table: pd.DataFrame) -> str:
    return str(table.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format))


def _looks(payoff: Payoff) -> dict[str, theme.Look]:
    return theme.looks([variant.name for variant in payoff.variants], payoff.parent)


def _mark(row: Any) -> str:
    return "" if row["quality"] == "keeps" else f" ({row['quality']})"


def _bar(value: float, low: float, high: float) -> dict[str, Any]:
    if low != low or high != high:
        return {}
    return theme.error_bars(value, low, high, thickness=1)
