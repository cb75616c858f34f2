"""The figures that are shipped are those of the published files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from simulations.idle import idle_table
from simulations.profiles import PROFILES

FILES = Path(__file__).parents[3] / "shared" / "traces" / "profiles"
needs_files = pytest.mark.skipif(
    not FILES.exists(), reason="the public traces are not beside the project"
)


def servegen(model: str) -> npt.NDArray[np.float64]:
    """(days, hours, 6): rates of 10 minutes, NaN in a hole of the collection."""
    table = pd.read_csv(FILES / "servegen_rate_10min.csv")
    table = table[table["model"] == model]
    return table["rps"].where(~table["hole"]).to_numpy(dtype=np.float64).reshape(-1, 24, 6)


def holds(name: str, rates: npt.NDArray[np.float64]) -> None:
    """To four digits."""
    np.testing.assert_allclose(PROFILES[name].rates, rates.ravel(), rtol=6e-4)


@needs_files
@pytest.mark.parametrize("model", ["m-large", "m-mid", "m-small", "mm-image"])
def test_servegen_by_hour(model: str) -> None:
    days = servegen(model)
    if model == "m-mid":
        days = days[~np.isnan(days).any(axis=(1, 2))]
    if model == "m-small":
        days = days[~np.isnan(days).all(axis=2).any(axis=1)]
    holds(f"servegen-{model}", np.nanmean(days, axis=2))


@needs_files
def test_deepseek_r1_by_hour_and_by_ten_minutes() -> None:
    day = servegen("deepseek-r1")
    holds("servegen-deepseek-r1-10min", day)
    np.testing.assert_allclose(
        PROFILES["servegen-deepseek-r1"].rates, day.mean(axis=2).ravel(), atol=0.006
    )


@needs_files
def test_azure_code_by_hour() -> None:
    table = pd.read_csv(FILES / "azure2024_code_week_digitised.csv")
    hour = (table["t_s"] // 3600).clip(upper=167)
    week = table.groupby(hour)["rps"].mean().to_numpy()
    holds("azure-code-week-2024", week)
    # The Tuesday that is a profile of its own was rounded to one decimal.
    np.testing.assert_allclose(PROFILES["azure-code-2024"].rates, week[4 * 24 : 5 * 24], atol=0.06)


@needs_files
@pytest.mark.parametrize(
    ("name", "model", "workload"),
    [
        ("microsoft365-a", "A", "prod"),
        ("microsoft365-c", "C", "prod"),
        ("microsoft365-a-dev", "A", "dev"),
        ("microsoft365-c-dev", "C", "dev"),
    ],
)
def test_microsoft_365_by_hour(name: str, model: str, workload: str) -> None:
    table = pd.read_parquet(FILES / "sageserve_o365_nov2024_tokens_per_min.parquet")
    table = table[(table["model"] == model) & (table["workload"] == workload)].sort_values("t_s")
    holds(name, table["tokens"].to_numpy(dtype=np.float64).reshape(168, 60).mean(axis=1) / 1000)


@needs_files
def test_deepseek_nodes_and_burstgpt_hours() -> None:
    nodes = pd.read_csv(FILES / "deepseek_h800_nodes_24h_digitised.csv")["nodes"]
    holds("deepseek-h800-nodes", nodes.to_numpy(dtype=np.float64).reshape(24, 12).mean(axis=1))
    table = pd.read_csv(FILES / "burstgpt1_hour_of_day_and_daily.csv")
    hours = table[table["kind"] == "mean_requests_in_hour_of_day"]["value"]
    holds("burstgpt-hour-of-day", hours.to_numpy(dtype=np.float64))


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_is_whole_days_with_a_source(name: str) -> None:
    profile = PROFILES[name]
    assert profile.source
    assert profile.note.endswith(".")
    assert len(profile.rates) % profile.steps_a_day == 0
    assert {len(day) for day in profile.days} == {profile.steps_a_day}
    assert min(profile.rates) > 0
    assert profile.burstiness is None or 0 < profile.burstiness <= 1


def test_the_documentation_has_every_profile_with_its_idle_shares() -> None:
    text = (Path(__file__).parents[2] / "docs" / "TRAFFIC.md").read_text()
    for row in idle_table(PROFILES).to_dict("records"):
        [line] = [line for line in text.splitlines() if named(row["profile"], line)]
        if line.startswith(f"| {row['profile']} "):
            assert f"| {row['day_idle_share']:.0%} |".replace("%", " %") in line
            assert f"| {row['night_idle_share']:.0%} |".replace("%", " %") in line
            assert f"| {row['days']} |" in line


def named(profile: str, line: str) -> bool:
    """Whether a row of the table names exactly this profile."""
    return line.startswith("| ") and profile in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)+", line)
