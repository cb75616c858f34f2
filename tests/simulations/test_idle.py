"""Idle shares of fleets of a fixed size: by hand, and those that were published beside the profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError
from simulations.idle import IdleStudy, idle_days, idle_table
from simulations.profiles import Profile
from simulations.scenarios import FleetStudy, read_scenario
from simulations.traffic import Edge, Workload

DECLARED = sorted((Path(__file__).parents[2] / "experiments" / "fleet").glob("*.yaml"))


def profile(*rates: float, step_s: float = 3600.0) -> Profile:
    return Profile("made up", "", "requests/s", step_s, rates, None, None)


def test_a_day_by_hand() -> None:
    """12 hours at 5, 12 at 1: the fleet for 5 is 80 % idle at night and 40 % of the day."""
    [day] = idle_days(profile(*[1.0] * 6, *[5.0] * 12, *[1.0] * 6))
    assert day.swing == 5
    assert day.day_share == pytest.approx(0.4)
    assert day.night_share == pytest.approx(0.8)  # of which six hours lie after midnight
    [half] = idle_days(profile(*[1.0] * 6, *[5.0] * 12, *[1.0] * 6), target_utilisation=0.5)
    assert half.night_share == pytest.approx(0.9)


def test_a_finer_grain_is_the_same_day() -> None:
    hours = np.random.default_rng(0).uniform(1, 9, 24)
    [coarse] = idle_days(profile(*hours))
    [fine] = idle_days(profile(*np.repeat(hours, 6), step_s=600.0))
    assert fine.night_share == pytest.approx(coarse.night_share)
    assert fine.day_share == pytest.approx(coarse.day_share)


def test_a_longer_night_is_less_idle_and_24_hours_are_the_day() -> None:
    day = profile(*np.random.default_rng(1).uniform(1, 9, 24))
    nights = [idle_days(day, night_hours=hours)[0].night_share for hours in (1, 8, 16, 24)]
    assert nights == sorted(nights, reverse=True)
    assert nights[-1] == pytest.approx(idle_days(day)[0].day_share)


@pytest.mark.parametrize(
    ("name", "days", "swing", "day_share", "night_share"),
    [
        ("azure-code-week-2024", 7, (9.3, 5.2, 10.9), 0.55, 0.86),
        ("microsoft365-c", 7, (6.5, 3.7, 7.8), 0.53, 0.82),
        ("microsoft365-a", 7, (3.2, 2.2, 6.7), 0.42, 0.63),
        ("servegen-deepseek-r1", 1, (4.9, 4.9, 4.9), 0.54, 0.71),
        ("servegen-deepseek-r1-10min", 1, (4.9, 4.9, 4.9), 0.54, 0.71),
        ("deepseek-h800-nodes", 1, (4.1, 4.1, 4.1), 0.18, 0.54),
        ("servegen-m-small", 13, (2.4, 1.8, 4.2), 0.33, 0.51),
        ("servegen-m-mid", 9, (2.3, 1.6, 3.3), 0.26, 0.36),
        ("servegen-mm-image", 1, (2.3, 2.3, 2.3), 0.26, 0.39),
        ("microsoft365-a-dev", 7, (4.3, 3.1, 4.8), 0.42, 0.54),
        ("microsoft365-c-dev", 7, (9.3, 6.9, 40.1), 0.57, 0.78),
        ("burstgpt-hour-of-day", 1, (11.7, 11.7, 11.7), 0.46, 0.81),
    ],
)
def test_profiles_have_the_idle_shares_that_were_computed_from_the_whole_files(
    name: str, days: int, swing: tuple[float, float, float], day_share: float, night_share: float
) -> None:
    """To the digits of that table: a point of the shares, 0.1 of the swings (medians over days)."""
    [row] = idle_table([name]).to_dict("records")
    assert row["days"] == days
    assert (row["swing"], row["swing_low"], row["swing_high"]) == pytest.approx(swing, abs=0.051)
    assert row["day_idle_share"] == pytest.approx(day_share, abs=0.0051)
    assert row["night_idle_share"] == pytest.approx(night_share, abs=0.0051)


def test_ten_of_the_fourteen_days_of_m_large_are_as_idle_as_all() -> None:
    """The table has 14 days and a swing of 2.6; of the ten that lie in the file the median is 2.3."""
    [row] = idle_table(["servegen-m-large"]).to_dict("records")
    assert row["days"] == 10
    assert row["day_idle_share"] == pytest.approx(0.32, abs=0.0051)
    assert row["night_idle_share"] == pytest.approx(0.48, abs=0.0051)


def test_the_shipped_study_answers_its_claim() -> None:
    study = read_scenario(next(path for path in DECLARED if path.stem == "night-idle"))
    assert isinstance(study, IdleStudy)
    table = study.table().set_index("profile")
    assert table["holds"].sum() == 5
    assert table["night_idle_share"].is_monotonic_decreasing
    holds, not_so = study.answer().split("It does not hold")
    assert "azure-code-week-2024 (86%)" in holds
    assert "servegen-m-mid (36%)" in not_so


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"night_hours": 0}, r"night_hours\(=0\)"), ({"target_utilisation": 1.2}, r"\(=1.2\) must")],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        idle_days(profile(*[1.0] * 24), **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="profile"):
        idle_table(["nowhere"])


@pytest.mark.parametrize("path", DECLARED, ids=lambda path: path.stem)
def test_declared_studies_can_be_read_and_their_traffic_drawn(path: Path) -> None:
    study = read_scenario(path)
    assert study.name == path.stem
    if isinstance(study, FleetStudy):
        cases = study.cases()
        assert len(cases) == len(study.arms) >= 2
        for case in cases:
            a_minute = case.workload.at(duration_s=60.0, warmup_s=0.0, spikes=())
            assert len(a_minute.schedule()) > 0


def test_an_arm_changes_what_it_names_and_nothing_else() -> None:
    path = next(path for path in DECLARED if path.stem == "edge-or-centre")
    study = read_scenario(path)
    assert isinstance(study, FleetStudy)
    centre, alone, *_ = study.cases()
    assert centre.edge is centre.site is None
    assert isinstance(alone.edge, Edge)
    assert alone.site is not None
    assert alone.site.variant != alone.plan.variant
    assert centre.workload.at(network=None) == alone.workload.at(network=None)
    assert isinstance(centre.workload, Workload)
    assert centre.workload.network != alone.workload.network
    assert centre.plan.model_copy(update={"name": alone.name}) == alone.plan


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("arms: [{name: a}, {name: a}]", "different names"),
        ("arms: [{name: a, changes: {fleet.size: 3}}]", r"changes\(='fleet.size'\)"),
        ("arms: [{name: a, changes: {plan.replicas: -1}}]", "replicas"),
        ("arms: []", "arms"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, wrong: str, said: str
) -> None:
    path = tmp_path / "wrong.yaml"
    good = next(path for path in DECLARED if path.stem == "qps-over-100").read_text()
    head, _ = good.split("arms:")
    answer = "answer: [{metric: ttft_p99_s, arm: a, above: 1}]"
    path.write_text(f"{head}{wrong}\nmetrics: [ttft_p99_s]\n{answer}\n")
    with pytest.raises(InputError, match=said) as refused:
        read_scenario(path)
    assert "\n" not in str(refused.value)
