"""Figures of a study: throughput against batch size, latency against rate, a line per combination."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simulations import theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.measure.study import StudyResult

_AXES = {
    "output_tokens_per_s": ("output", "tokens per second", 1.0),
    "ttft_p99_s": ("TTFT p99", "ms", 1e3),
    "tpot_p50_s": ("TPOT p50", "ms", 1e3),
}
"""Metric -> name, unit and how many of them a second (or token per second) is."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ study.name }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root { color-scheme: light dark }
body { font-family: system-ui, sans-serif; max-width: 60rem; margin: auto; padding: 1rem }</style>
</head><body><h1>{{ study.question }}</h1>
<p>{{ points }} points, {{ failures|length }} failed. Bars: least and most of {{ study.repeats }}
repeats. Seed {{ study.seed }}.</p>
{% for figure in figures %}{{ figure|safe }}{% endfor %}
{% if failures %}<h2>Could not be measured</h2><ul>
{% for one in failures %}<li>{{ one.name }}: {{ one.cause }}</li>{% endfor %}</ul>{% endif %}
{% if doubted %}<h2>Left out, because they cannot be trusted</h2><ul>
{% for one in doubted %}<li>{{ one.name }}: {{ one.invalid|join("; ") }}</li>{% endfor %}</ul>{% endif %}
<h2>Measured on</h2><ul>{% for one in environments %}<li>{{ one }}</li>{% endfor %}</ul>
</body></html>
"""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def study_figures(result: StudyResult) -> list[go.Figure]:
    """What a study has to show: throughput and TPOT by batch, TTFT and TPOT by rate.

    A colour and marker per lengths, a dash per variant and engine; bars from the least to the most
    over the repeats. Points that cannot be trusted are left out.
    """
    table = result.frame()
    if table.empty:
        return []
    table = table[table["valid"]]
    closed, open_ = table[table["batch"].notna()], table[table["rate_rps"].notna()]
    engines = ["variant", *result.study.varied]
    figures = []
    if len(closed):
        x = theme.batch_axis(closed["batch"])
        figures += [
            _lines(closed, engines, "Throughput", "batch", x, "output_tokens_per_s"),
            _lines(closed, engines, "Latency per token", "batch", x, "tpot_p50_s"),
        ]
    if len(open_):
        x = theme.axis("offered rate (requests per second)")
        figures += [
            _lines(open_, engines, "TTFT p99", "rate_rps", x, "ttft_p99_s"),
            _lines(open_, engines, "TPOT p50", "rate_rps", x, "tpot_p50_s"),
        ]
    return figures


def _lines(
    table: pd.DataFrame, engines: list[str], title: str, by: str, x: dict[str, object], metric: str
) -> go.Figure:
    quantity, unit, scale = _AXES[metric]
    figure = theme.canvas(title, x, theme.log_axis(f"{quantity} ({unit})", scale * table[metric]))
    varied = [name for name in engines if table[name].astype(str).nunique() > 1]
    labels = _labels(table, varied)
    lengths = [
        f"{prompt:g} → {output:g} tokens"
        for prompt, output in zip(table["prompt_tokens"], table["output_tokens"], strict=True)
    ]
    looks = theme.looks(lengths)
    dashes = dict(zip(dict.fromkeys(labels), _DASHES * len(table), strict=False))
    for length, label in dict.fromkeys(zip(lengths, labels, strict=True)):
        rows = table[[pair == (length, label) for pair in zip(lengths, labels, strict=True)]]
        of_level = (scale * rows.set_index(by)[metric]).groupby(level=0)
        mean, low, high = of_level.mean(), of_level.min(), of_level.max()
        figure.add_scatter(
            x=mean.index,
            y=mean,
            name=f"{length}{', ' if label else ''}{label}",
            mode="lines+markers",
            line={"color": looks[length].colour, "dash": dashes[label], "width": 2},
            marker={"symbol": looks[length].symbol, "size": 7},
            error_y=theme.error_bars(mean, low, high),
            hovertemplate=f"%{{x:g}}: %{{y:.4g}} {unit}",
        )
    return figure


def _labels(table: pd.DataFrame, varied: list[str]) -> list[str]:
    """What tells the engines apart, in the words of EngineArgs."""
    if not varied:
        return [""] * len(table)
    texts = [
        [str(value) if name == "variant" else f"{name}={value}" for value in table[name]]
        for name in varied
    ]
    return [" ".join(parts) for parts in np.array(texts).T]


def study_page(result: StudyResult, out: Path) -> Path:
    """Write the question, the figures, what could not be measured and on what: one HTML file."""
    import jinja2

    figures = [
        figure.to_html(full_html=False, include_plotlyjs=(i == 0), config={"displaylogo": False})
        for i, figure in enumerate(study_figures(result))
    ]
    environments = sorted({m.environment.describe() for m in result.measurements})
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        study=result.study,
        figures=figures,
        failures=result.failures,
        doubted=[m for m in result.measurements if m.invalid],
        points=len(result.measurements),
        environments=environments,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(out)
