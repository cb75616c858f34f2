"""Figures of fidelity: predicted against measured, and the error of each load beside the noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulations import theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.fidelity import Fidelity

_THROUGHPUT = "output_tokens_per_s"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Fidelity of the twin</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { color-scheme: light dark }
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem }
table { border-collapse: collapse; font-size: small } td, th { padding: 0.1rem 0.5rem; text-align: right }
</style></head><body><h1>Is what the twin predicts what vLLM does?</h1>
<p>{{ said }}. {{ study.repeats }} repeats of each load, the same arrivals, lengths and prompts each time;
bars: least and most of the repeats, and the prediction's 95 % interval (scatter of the steps and
uncertainty of the coefficients). Right is {{ "%.0f"|format(100 * study.target_p50) }} % for medians and
throughput, {{ "%.0f"|format(100 * study.target_tail) }} % for p95 and p99, or within
{{ "%g"|format(study.noise_floors) }} times what two repeats differ by. Seed {{ study.seed }}.</p>
{% for figure in figures %}{{ figure|safe }}{% endfor %}
{{ table|safe }}
{% if doubts %}<h2>Doubts</h2><ul>{% for one in doubts %}<li>{{ one }}</li>{% endfor %}</ul>{% endif %}
{% if left_out %}<h2>Left out, because it cannot be trusted</h2><ul>
{% for one in left_out %}<li>{{ one }}</li>{% endfor %}</ul>{% endif %}
<h2>Measured on</h2><p>{{ measured_on }}</p><p>Fitted to: {{ source }}</p>
</body></html>
"""


def predicted_against_measured(found: Fidelity) -> go.Figure:
    """Latencies on two log axes: what lies on the line is predicted exactly; the band is 10 %."""
    rows = found.rows[found.rows["metric"] != _THROUGHPUT]
    kinds = rows["metric"].str.extract(r"^(?P<latency>\w+?)_(?P<percentile>p\d+)_s$")
    every = 1e3 * pd.concat([rows["predicted"], rows["measured"]])
    low, high = 0.8 * float(every[every > 0].min()), 1.25 * float(every.max())
    figure = theme.canvas(
        "Predicted against measured",
        theme.log_axis("measured (ms)", [low, high]),
        theme.log_axis("predicted (ms)", [low, high]),
        height=520,
    )
    for factor, dash in ((1.0, "solid"), (0.9, "dot"), (1.1, "dot")):
        line = {"color": theme.GREY, "width": 1, "dash": dash}
        ends = [factor * low, factor * high]
        figure.add_scatter(x=[low, high], y=ends, mode="lines", line=line, showlegend=False)
    looks = theme.looks(kinds["latency"].str.upper() + " " + kinds["percentile"])
    names = kinds["latency"].str.upper() + " " + kinds["percentile"]
    for name, look in looks.items():
        some = rows[names == name]
        figure.add_scatter(
            x=1e3 * some["measured"],
            y=1e3 * some["predicted"],
            error_x=_bars(some, "measured", "measured_low", "measured_high"),
            error_y=_bars(some, "predicted", "low", "high"),
            text=some["load"],
            name=name,
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
            hovertemplate="%{text}: measured %{x:.4g} ms, predicted %{y:.4g} ms",
        )
    return figure


def errors_by_load(found: Fidelity) -> go.Figure:
    """Relative error of each metric at each load, with its interval over repeats."""
    rows = found.rows.copy()
    figure = theme.canvas(
        "Relative error of the prediction",
        theme.axis("load (share of the capacity)", type="category"),
        theme.axis("error of the prediction (%)"),
        height=420,
    )
    figure.add_hline(y=0, line={"width": 1, "color": theme.GREY})
    looks = theme.looks(rows["metric"])
    for name, look in looks.items():
        some = rows[rows["metric"] == name]
        figure.add_scatter(
            x=some["load"],
            y=100 * some["relative_error"],
            error_y={
                "type": "data",
                "array": (100 * (some["error_high"] - some["relative_error"])).clip(lower=0),
                "arrayminus": (100 * (some["relative_error"] - some["error_low"])).clip(lower=0),
                "thickness": 1,
            },
            name=_named(name),
            mode="markers",
            marker={"color": look.colour, "symbol": look.symbol, "size": 8},
            customdata=100 * some["noise_floor"],
            hovertemplate="%{x}: %{y:+.1f} % (two repeats differ by %{customdata:.1f} %)",
        )
    return figure


def fidelity_page(found: Fidelity, out: Path) -> Path:
    """Write figures, table and doubts as one HTML file."""
    import jinja2

    figures = [
        figure.to_html(full_html=False, include_plotlyjs=(i == 0), config={"displaylogo": False})
        for i, figure in enumerate((predicted_against_measured(found), errors_by_load(found)))
    ]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        said=str(found),
        study=found.loads.study,
        figures=figures,
        table=found.table().to_html(index=False, float_format="{:.4g}".format, border=0),
        doubts=found.doubts,
        left_out=found.left_out,
        measured_on=found.measured_on,
        source=found.latency.source,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(out)


def _named(metric: str) -> str:
    if metric == _THROUGHPUT:
        return "output tokens/s"
    latency, percentile, _ = metric.split("_")
    return f"{latency.upper()} {percentile}"


def _bars(rows: pd.DataFrame, of: str, low: str, high: str) -> dict[str, object]:
    return {
        "type": "data",
        "array": 1e3 * (rows[high] - rows[of]).clip(lower=0),
        "arrayminus": 1e3 * (rows[of] - rows[low]).clip(lower=0),
        "thickness": 1,
    }
