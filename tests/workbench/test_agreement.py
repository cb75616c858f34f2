"""Predicted against measured: signs, tolerances and what measuring twice differs by."""

from __future__ import annotations

from itertools import product
from math import isnan

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.values import Estimate
from workbench.agreement import compare, noise_floor

POSITIVE = st.floats(1e-3, 1e3)


def told(value: float) -> dict[str, Estimate]:
    return {"ttft_p50_s": Estimate(value=value, low=value, high=value, n=1)}


def row(predicted: float, *measured: float, target: float = 0.05, floors: float = 0.0) -> pd.Series:
    table = pd.DataFrame({"ttft_p50_s": measured})
    found = compare(told(predicted), table, lambda metric: target, noise_floors=floors)
    return found.iloc[0]


def test_too_much_is_positive_and_the_median_counts() -> None:
    found = row(1.2, 1.0, 0.5, 3.0)
    assert found["measured"] == 1.0
    assert found["relative_error"] == pytest.approx(0.2)
    assert (found["measured_low"], found["measured_high"]) == (0.5, 3.0)
    assert row(0.8, 1.0)["relative_error"] == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("predicted", "measured", "floors", "holds"),
    [
        (1.04, (1.0, 1.0), 0, True),
        (1.06, (1.0, 1.0), 0, False),
        (1.06, (1.0, 1.0), 2, False),
        (1.15, (0.96, 1.04), 2, True),
        (1.15, (0.96, 1.04), 1, False),
        (1.06, (1.0,), 2, False),
        (0.0, (1.0,), 0, False),
        (1.0, (0.0,), 0, False),
        (1.0, (float("nan"),), 0, False),
    ],
)
def test_it_holds_within_the_target_or_the_noise(
    predicted: float, measured: tuple[float, ...], floors: float, holds: bool
) -> None:
    assert row(predicted, *measured, floors=floors)["holds"] == holds


def test_the_noise_floor_is_how_one_repeat_would_predict_another() -> None:
    assert noise_floor([1.0, 1.1]) == pytest.approx((0.1 + (1 - 1 / 1.1)) / 2)
    assert noise_floor([2.0, 2.0, 2.0]) == 0
    assert isnan(noise_floor([1.0]))


@given(values=st.lists(POSITIVE, min_size=2, max_size=6), factor=POSITIVE)
def test_the_noise_floor_has_no_unit_and_no_order(values: list[float], factor: float) -> None:
    floor = noise_floor(values)
    assert floor >= 0
    assert noise_floor([factor * value for value in reversed(values)]) == pytest.approx(floor)


def test_the_interval_over_repeats_holds_the_true_error() -> None:
    """Of a prediction that is 8 % too high, measured with 5 % of noise."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(400):
        found = row(1.08, *np.exp(rng.normal(0, 0.05, 4)))
        inside.append(found["error_low"] <= 0.08 <= found["error_high"])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_every_metric_has_its_own_target() -> None:
    both = {**told(1.07), "ttft_p99_s": Estimate(value=1.07, low=1, high=2, n=3)}
    table = pd.DataFrame({"ttft_p50_s": [1.0], "ttft_p99_s": [1.0]})
    found = compare(both, table, lambda metric: 0.1 if "p99" in metric else 0.05)
    assert found.set_index("metric")["holds"].to_dict() == {"ttft_p50_s": False, "ttft_p99_s": True}
    pairs = list(product([1.07], found["target"]))
    assert pairs == [(1.07, 0.05), (1.07, 0.1)]
