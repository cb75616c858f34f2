"""Figures of traffic: how idle fleets of a fixed size are at night."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulations import theme
from simulations.idle import IdleStudy

if TYPE_CHECKING:
    import plotly.graph_objects as go


def idle_shares(study: IdleStudy) -> go.Figure:
    """Idle share of the night and of the whole day by profile, and what the claim says of the night."""
    import plotly.graph_objects as go

    table = study.table()
    figure = theme.canvas(
        "Idle share of a fleet sized for its busiest hour",
        theme.axis("", type="category"),
        theme.axis("idle share", range=[0, 1], tickformat=".0%"),
        barmode="group",
    )
    for column, name, colour in (
        ("night_idle_share", f"quietest {study.night_hours} hours", theme.BLUE),
        ("day_idle_share", "whole day", theme.SKY),
    ):
        figure.add_trace(
            go.Bar(x=table["profile"], y=table[column], name=name, marker={"color": colour})
        )
    theme.limit_line(figure, study.above, f"the claim: {study.above:.0%}", right=True)
    return figure
