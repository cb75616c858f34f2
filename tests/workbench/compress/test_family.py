"""What a notebook shows of a list of variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from workbench.compress import Variants

if TYPE_CHECKING:
    from conftest import Results


def test_variants_show_their_tree_and_verdicts(results: Results) -> None:
    shown = Variants(results.variants)._repr_html_()
    assert shown.startswith(f"<b>{len(results.variants)} variants</b>")
    for variant in results.variants:
        assert variant.name in shown
    assert "loses" in shown


def test_the_payoff_map_is_drawn_over_speed_where_it_was_measured(results: Results) -> None:
    figure = Variants(results.variants).payoff(results.measurements)
    assert "speed-up" in figure.layout.xaxis.title.text
    assert len(figure.data) == len(results.variants)


def test_the_payoff_map_is_drawn_over_size_where_no_speed_is_known(results: Results) -> None:
    variants = Variants(results.variants)
    figure = variants.payoff(max_quality_loss=0.05)
    assert "smaller" in figure.layout.xaxis.title.text
    found = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data}
    parent = variants[0]
    for variant in variants:
        assert variant.quality is not None
        smaller = parent.size_bytes / variant.size_bytes
        kept = 100 * variant.quality.recovery.value
        assert found[variant.name] == pytest.approx((smaller, kept))
    assert figure.layout.annotations[0].y == pytest.approx(95)


def test_nothing_made_is_nothing_shown() -> None:
    assert "0 variants" in Variants()._repr_html_()
    assert not Variants().payoff().data
