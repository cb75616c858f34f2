"""How every figure looks: colours that colour-blind readers can tell apart, and no decoration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's palette without black (lost on a dark page) and yellow (lost on a light one).
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#7A828E"
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
_GRID = "rgba(128,134,145,0.22)"


@dataclass(frozen=True)
class Look:
    """Colour and marker of one series, the same in every figure."""

    colour: str
    symbol: str


def looks(names: Iterable[str], parent: str | None = None) -> dict[str, Look]:
    """A look for each name: the parent grey, the others in the order given.

    Shapes differ as well as colours, so that a print in grey can be read.
    """
    found: dict[str, Look] = {}
    for name in dict.fromkeys(names):
        if name == parent:
            found[name] = Look(GREY, "circle-open")
            continue
        at = sum(known != parent for known in found)
        again = at // len(_COLOURS)  # the same colour comes with another shape
        found[name] = Look(_COLOURS[at % len(_COLOURS)], _SYMBOLS[(at + again) % len(_SYMBOLS)])
    return found


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis with its title (and unit), faint grid, no box."""
    return {
        "title": {"text": title, "standoff": 8},
        "gridcolor": _GRID,
        "zeroline": False,
        "showline": False,
        "automargin": True,
        **options,
    }


def batch_axis(batches: Iterable[float]) -> dict[str, Any]:
    """Batch sizes on a log axis, labelled with the sizes that were measured."""
    ticks = sorted(set(batches))
    labels = [f"{tick:g}" for tick in ticks]
    return axis("batch size (sequences)", type="log", tickvals=ticks, ticktext=labels)


def log_axis(title: str, values: Iterable[float]) -> dict[str, Any]:
    """A log axis labelled at 1, 2 and 5 times the powers of ten that the values span."""
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    powers = range(math.floor(math.log10(min(known))), math.ceil(math.log10(max(known))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    labels = [f"{tick:g}" for tick in ticks]
    return axis(title, type="log", tickvals=ticks, ticktext=labels)


def error_bars(value: ArrayLike, low: ArrayLike, high: ArrayLike, **look: Any) -> dict[str, Any]:
    """Bars from low to high around values, as a trace's error_x or error_y."""
    at, least, most = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (value, low, high))
    return {"array": most - at, "arrayminus": at - least, "symmetric": False, **look}


def canvas(title: str, x: dict[str, Any], y: dict[str, Any], **options: Any) -> go.Figure:
    """An empty figure in the house style."""
    import plotly.graph_objects as go

    return go.Figure(
        layout={
            # Plotly's own template would bring a background, boxes and its colours.
            "template": "none",
            "title": {
                "text": title,
                "font": {"size": 14},
                # From the figure's edge: long names beside the bars must not push it out at the right.
                "x": 0,
                "xref": "container",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 10, "l": 8},
            },
            "font": {"family": "system-ui, -apple-system, Segoe UI, sans-serif", "color": GREY},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 56, "r": 16, "t": 48, "b": 48},
            "height": 380,
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": -0.2,
                "yanchor": "top",
                "traceorder": "normal",
            },
            "hovermode": "closest",
            "xaxis": x,
            "yaxis": y,
            **options,
        }
    )


def limit_line(figure: go.Figure, value: float, label: str, *, right: bool = False) -> None:
    """A dashed horizontal line for a limit, with its name at the left or right end."""
    figure.add_hline(y=value, line={"dash": "dash", "width": 1.5, "color": VERMILION})
    # On a log axis plotly places shapes by value and annotations by its logarithm.
    logarithmic = figure.layout.yaxis.type == "log"
    figure.add_annotation(
        text=label,
        x=float(right),
        xref="paper",
        xanchor="right" if right else "left",
        y=math.log10(value) if logarithmic else value,
        yanchor="bottom",
        showarrow=False,
        font={"color": VERMILION, "size": 11},
    )
