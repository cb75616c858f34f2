"""What compression pays, read from the results of an H100 that are in the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import compression
from experiments.compression import Found, answers, figures


@pytest.fixture(scope="module", params=compression.RESULTS, ids=lambda path: path.name)
def found(request: pytest.FixtureRequest) -> Found:
    folder = request.param
    assert isinstance(folder, Path)
    return Found.read(folder)


def test_every_point_has_power_energy_and_its_share_of_the_ceilings(found: Found) -> None:
    costs = found.costs
    assert len(costs) == len(found.payoff.table)
    assert costs["power_mean_w"].between(100, 700).all()
    for share in ("mbu", "mfu"):
        assert costs[share].between(0, 1).all()
    # torch's INT8 product, which the ceiling is, is a little slower than the kernel that vLLM takes.
    slack = 0.03 * (costs["variant"] == "int8-gptq")
    assert (costs["roofline_share"] <= 1 + slack).all()
    # One sequence waits for the memory, many for the arithmetic.
    bf16 = costs[(costs["variant"] == "bf16") & (costs["prompt_tokens"] == 128)]
    short = bf16[bf16["output_tokens"] == 128].set_index("batch").sort_index()
    assert short["mbu"].is_monotonic_decreasing
    assert short["mfu"].is_monotonic_increasing
    assert short["joules_per_token"].is_monotonic_decreasing


def test_answers_are_those_of_the_points(found: Found) -> None:
    said = answers(found)
    slower = found.slower_than_parent()
    assert sum("is no faster than bf16" in line for line in said) == len(slower) > 0
    assert set(slower["variant"]) <= set(compression.FOUR_BIT)
    assert any("FP32 to INT8" in line for line in said) == (found.name == "payoff-8b")
    gain = found.result.gains(32, over=1).set_index("variant")["gain"]
    assert f"{gain.max():.1f}" in next(line for line in said if "Batch 32" in line)


def test_figures_draw_each_variant_at_one_pair_of_lengths(found: Found) -> None:
    table = found.payoff.table
    at = table[(table["prompt_tokens"] == 128) & (table["output_tokens"] == 128)]
    speed, energy = figures(found)
    for figure in (speed, energy):
        assert {trace.name for trace in figure.data} == set(at["variant"])
    parent = next(trace for trace in speed.data if trace.name == found.payoff.parent)
    assert list(parent.y) == [1.0] * len(parent.x)
