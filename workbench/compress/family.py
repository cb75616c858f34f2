"""Variants of one model as a list that a notebook shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.plan import Variant
from serving.values import shown_html

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.measure import Measurement


class Variants(list[Variant]):
    """A parent and what was made of it: a list, shown as the tree of who was made of whom."""

    def payoff(
        self, measurements: Sequence[Measurement] = (), max_quality_loss: float = 0.02
    ) -> go.Figure:
        """The payoff map: the quality that each keeps, against what it gains.

        Args:    measurements: closed loops, as `sweep_batches` returns; the gain is the speed-up over
                     the parent, from small batches to large. Without any: how much smaller the files are.
                 max_quality_loss: share of the score that may be lost, drawn as a line.
        """
        from workbench.report.figures import payoff_map
        from workbench.report.lineage_figures import kept_by_size

        if not measurements:
            return kept_by_size(self, max_quality_loss)
        return payoff_map(self, measurements, max_quality_loss)

    def plot(self, max_quality_loss: float = 0.02) -> go.Figure:
        """Which was made of which, with method, size and what is kept."""
        from workbench.report.lineage_figures import lineage_figure

        return lineage_figure(self, max_quality_loss)

    def _repr_html_(self) -> str:
        from workbench.tables import variant_table

        return shown_html(f"{len(self)} variants", variant_table(self, max_quality_loss=0.02))
