"""Put everything into one HTML file that needs nothing else."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.report.assumptions import assumptions
from workbench.report.data import ReportData
from workbench.report.headline import cards, headline, summary_table
from workbench.report.sections import sections

_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "resetScale2d"]],
}


def report(data: ReportData, out: Path) -> Path:
    """Write the page, whole or not at all.

    It is one file: figures, their library and the style are inside, and it forbids itself to load
    anything else.

    Args:    out: the HTML file, or a folder that gets report.html.
    Returns: the file.
    """
    import jinja2
    import plotly.offline

    if out.is_dir():
        out = out / "report.html"
    template = importlib.resources.files("workbench.report").joinpath("template.html").read_text()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["rows"] = _rows
    parts = list(sections(data))
    drawn = {f"{p.anchor}-{i}": figure for p in parts for i, figure in enumerate(p.figures, 1)}
    page = environment.from_string(template).render(
        data=data,
        headline=headline(data),
        cards=list(cards(data)),
        summary=summary_table(data),
        sections=parts,
        figures={name: _script_json(figure.to_json()) for name, figure in drawn.items()},
        config=_script_json(json.dumps(_CONFIG)),
        assumptions=list(assumptions(data)),
        seeds=_seeds(data.settings),
        environments=_environments(data),
        refused=[m for m in data.measurements if m.invalid],
        settings=_flat(data.settings),
        plotly_js=plotly.offline.get_plotlyjs(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(out)


def _script_json(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c")


def _rows(table: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(table.columns), "cells": table.fillna("–").astype(str).to_numpy()}


def _environments(data: ReportData) -> pd.DataFrame:
    """The machines and versions behind the measurements, each once."""
    rows: list[dict[str, str]] = []
    for measurement in data.measurements:
        found = measurement.environment
        row = {
            "hardware": found.hardware,
            "GPUs": str(found.gpu_count),
            "CPUs": str(found.cpu_count),
            "memory": f"{found.memory_gib:.0f} GiB",
            "python": found.python,
            "versions": ", ".join(
                f"{name} {text}" for name, text in sorted(found.versions.items())
            ),
        }
        if row not in rows:
            rows.append(row)
    return pd.DataFrame(rows)


def _seeds(settings: Mapping[str, Any]) -> dict[str, str]:
    """Every setting that draws: what has to be the same for the same page."""
    return {name: text for name, text in _flat(settings).items() if "seed" in name}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts |= _flat(value, f"{prefix}{name}.")
        else:
            texts[prefix + name] = (
                value if isinstance(value, str) else json.dumps(value, default=str)
            )
    return texts
