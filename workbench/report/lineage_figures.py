"""Figures of how variants were made: the tree of their lineage, and what students recovered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.plan import Variant
from simulations import theme
from workbench.compress.learning import learning_curves
from workbench.compress.recipe import is_snapshot, lineage
from workbench.report.words import with_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

_VERDICTS = {
    "keeps": (theme.GREEN, "circle"),
    "in doubt": (theme.ORANGE, "diamond"),
    "loses": (theme.VERMILION, "x"),
    "not judged": (theme.GREY, "circle-open"),
}
_WORDS = {"none": "as it is", "distil": "distilled", "prune": "pruned", "sparsify": "sparse"}


def lineage_figure(variants: Sequence[Variant], max_quality_loss: float) -> go.Figure:
    """Which variant was made of which, with method, size and what is kept, narrow enough for a phone."""
    tree = lineage([variant for variant in variants if not is_snapshot(variant)])
    at = {variant.name: (depth, -row) for row, (depth, variant) in enumerate(tree)}
    deepest = max(depth for depth, _ in tree)
    hidden = {"visible": False, "fixedrange": True}
    figure = theme.canvas(
        "How the variants were made, and what they keep",
        # Small indents: what stands beside a marker needs the width.
        {**hidden, "range": [-0.3, deepest + 12]},
        {**hidden, "range": [0.5 - len(tree), 0.5]},
        height=80 + 36 * len(tree),
        margin={"l": 8, "r": 8, "t": 40, "b": 40},
    )
    figure.update_layout(legend_y=0)
    for _, variant in tree:
        if variant.parent in at:
            (x, y), (from_x, from_y) = at[variant.name], at[variant.parent]
            figure.add_scatter(
                x=[from_x, from_x, x],
                y=[from_y, y, y],
                mode="lines",
                line={"color": theme.GREY, "width": 1},
                hoverinfo="skip",
                showlegend=False,
            )
    for verdict, (colour, symbol) in _VERDICTS.items():
        some = [v for _, v in tree if _verdict(v, max_quality_loss) == verdict]
        if some:
            figure.add_scatter(
                x=[at[v.name][0] for v in some],
                y=[at[v.name][1] for v in some],
                text=[_label(v) for v in some],
                name=verdict,
                mode="markers+text",
                textposition="middle right",
                marker={"color": colour, "symbol": symbol, "size": 10},
                hoverinfo="skip",
                cliponaxis=False,
            )
    return figure


def kept_by_size(variants: Sequence[Variant], max_quality_loss: float) -> go.Figure:
    """Quality kept against how many times smaller the files are than the parent's.

    Students on the way to another are left out: they are as small as it.
    """
    parent = next((v for v in variants if v.parent is None), None)
    looks = theme.looks([v.name for v in variants], parent.name if parent else None)
    figure = theme.canvas(
        "What each keeps, and how much smaller it is",
        theme.axis("times smaller than the parent (×)"),
        theme.axis("accuracy kept (% of parent)"),
        # On a phone the names stand one below the other.
        height=max(380, 280 + 22 * len(variants)),
    )
    for variant in (v for v in variants if not is_snapshot(v)):
        if parent is None or variant.quality is None or not variant.size_bytes:
            continue
        kept = variant.quality.recovery
        values = [100 * value for value in (kept.value, kept.low, kept.high)]
        figure.add_scatter(
            x=[parent.size_bytes / variant.size_bytes],
            y=values[:1],
            name=variant.name,
            mode="markers",
            marker={
                "symbol": looks[variant.name].symbol,
                "color": looks[variant.name].colour,
                "size": 11,
            },
            error_y=theme.error_bars(*values, thickness=1),
            hovertemplate="%{x:.2f}× smaller, %{y:.1f} % kept",
        )
    theme.limit_line(figure, 100 * (1 - max_quality_loss), "allowed loss of quality", right=True)
    return figure


def recovery_by_tokens(variants: Sequence[Variant]) -> go.Figure | None:
    """Perplexity over the parent's against the tokens that each student has learnt from.

    None where nothing was distilled.
    """
    curves = learning_curves(variants)
    if curves.empty:
        return None
    looks = theme.looks(curves["student"])
    figure = theme.canvas(
        "What distillation recovers",
        theme.axis("tokens learnt from", rangemode="tozero"),
        theme.log_axis("perplexity over the parent's (×)", [*curves["perplexity_ratio_high"], 1]),
    )
    for name, curve in curves.groupby("student", sort=False):
        look, score = looks[str(name)], curve["perplexity_ratio"]
        figure.add_scatter(
            x=curve["tokens"],
            y=score,
            name=str(name),
            mode="lines+markers",
            line={"color": look.colour, "width": 2},
            marker={"symbol": look.symbol, "size": 8},
            error_y=theme.error_bars(
                score, curve["perplexity_ratio_low"], curve["perplexity_ratio_high"], thickness=1
            ),
            customdata=100 * curve["recovery"],
            hovertemplate="%{x:,} tokens: %{y:.3f}×, %{customdata:.1f} % of the tasks kept",
        )
    figure.add_hline(y=1, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    return figure


def _verdict(variant: Variant, max_quality_loss: float) -> str:
    return variant.quality.verdict(max_quality_loss) if variant.quality else "not judged"


def _label(variant: Variant) -> str:
    """Two lines; whether it keeps enough is said by the marker."""
    size = f", {variant.size_mib:,.1f} MiB" if variant.size_bytes else ""
    told = [] if variant.method == variant.name else [_WORDS.get(variant.method, variant.method)]
    if variant.quality is not None and variant.parent is not None:
        told.append(with_interval(variant.quality.recovery))
    return f"  <b>{variant.name}</b>{size}<br>  {', '.join(told)}"
