"""The figure and the page of a study of a fleet: every arm's metrics with their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations import theme
from simulations.studies import NAMES, StudyAnswer

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLUMNS = 3
_FAR = 30
"""Arms whose values are so many times others are told apart on a logarithmic axis only."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ found.name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { color-scheme: light dark }
body { font-family: system-ui, sans-serif; max-width: 72rem; margin: auto; padding: 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #8886 }</style>
</head><body><h1>{{ found.question }}</h1>
<p>Claim: {{ found.claim }}</p>
<p><b>{{ found.answer }}</b></p>
{% if found.quick %}<p>A first look: the runs were shortened.</p>{% endif %}
{% if found.neglects %}<p>Neglected: {{ found.neglects }}</p>{% endif %}
{{ figure|safe }}
<p>Means and 95 % intervals over seeds {{ found.seeds|join(", ") or "(none)" }}; in brackets what is
more than in {{ found.arms[0] }} on the same seeds.</p>
<table><tr>{% for name in table.columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.values.tolist() %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if found.doubts %}<h2>Cannot be trusted</h2><ul>
{% for doubt in found.doubts %}<li>{{ doubt }}</li>{% endfor %}</ul>{% endif %}
</body></html>
"""


def scenario_figure(found: StudyAnswer) -> go.Figure:
    """A panel per metric, a row per arm: the mean and its interval over seeds."""
    columns = min(_COLUMNS, len(found.metrics))
    rows = math.ceil(len(found.metrics) / columns)
    figure = theme.canvas(found.question, theme.axis(""), theme.axis(""))
    figure.update_layout(
        height=110 + rows * (90 + 24 * len(found.arms)), showlegend=False, margin={"l": 190}
    )
    looks = theme.looks(found.arms, found.arms[0] if found.seeds else None)
    for at, metric in enumerate(found.metrics):
        row, column = divmod(at, columns)
        number = "" if at == 0 else str(at + 1)
        wide, tall = 1 / columns, 1 / rows
        first = column == 0
        figure.update_layout(
            {
                f"xaxis{number}": {
                    **_scale(found, metric),
                    "domain": [column * wide + 0.015, (column + 1) * wide - 0.015],
                    "anchor": f"y{number}",
                },
                f"yaxis{number}": theme.axis(
                    "",
                    domain=[1 - (row + 1) * tall + 0.24 * tall, 1 - row * tall],
                    anchor=f"x{number}",
                    categoryorder="array",
                    categoryarray=list(reversed(found.arms)),
                    range=[-0.6, len(found.arms) - 0.4],
                    showticklabels=first,
                ),
            }
        )
        for cell in (cell for cell in found.cells if cell.metric == metric):
            figure.add_scatter(
                x=[cell.value.value],
                y=[cell.arm],
                xaxis=f"x{number}",
                yaxis=f"y{number}",
                mode="markers",
                name=cell.arm,
                marker={
                    "symbol": looks[cell.arm].symbol,
                    "color": looks[cell.arm].colour,
                    "size": 9,
                },
                error_x=theme.error_bars(cell.value.value, cell.value.low, cell.value.high),
                hovertemplate="%{y}: %{x:.4g}",
            )
    if found.limit is not None:
        figure.add_vline(x=found.limit, line={"dash": "dash", "color": theme.VERMILION})
    return figure


def _scale(found: StudyAnswer, metric: str) -> dict[str, Any]:
    """From zero, or logarithmic where the arms lie far apart."""
    name = NAMES.get(metric, metric.replace("_", " "))
    values = [cell.value.value for cell in found.cells if cell.metric == metric]
    if values and min(values) > 0 and max(values) > _FAR * min(values):
        return theme.axis(name, type="log", dtick=1)
    return theme.axis(name, rangemode="tozero", nticks=5)


def scenario_page(found: StudyAnswer, out: Path) -> Path:
    """Write the question, the answer, the figure and the table: one HTML file, whole or not at all."""
    import jinja2

    figure = scenario_figure(found).to_html(
        full_html=False, include_plotlyjs=True, config={"displaylogo": False}
    )
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page.render(found=found, figure=figure, table=found.frame()), "utf-8")
    return partial.replace(out)
