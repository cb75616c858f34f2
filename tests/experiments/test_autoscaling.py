"""The committed search says what its declaration asks, and where the gap to the bound comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.autoscaling import HERE, Declared, answer, steps_to_the_bound
from workbench.tune import Tuning
from workbench.tune.equals import ARTICLE_HPA, AS_GOOD

RESULT = HERE / "results/h100/autoscaling"


@pytest.fixture(scope="module")
def declared() -> Declared:
    return Declared.load(HERE / "autoscaling.yaml")


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return Tuning.read(Path(RESULT))


def test_the_result_is_of_what_is_declared(declared: Declared, tuning: Tuning) -> None:
    assert tuning.winner.slo == declared.slo
    assert tuning.winner.variant.model == declared.model
    assert len(tuning.trials) == declared.trials
    assert tuning.winner_result.per_seed["seed"].tolist() == list(declared.unseen_seeds)


def test_every_claim_is_answered(declared: Declared, tuning: Tuning) -> None:
    said = answer(declared, tuning)
    for name, claimed in declared.claims.items():
        hours = tuning.table().set_index("name")["gpu_hours"]
        ratio = hours["tuned"] / hours[name]
        held = "holds" if ratio <= claimed else "does not hold"
        assert f"{ratio:.2f} times the GPU hours of {name}: at most {claimed:g} {held}." in said
    assert tuning.at_equal_attainment_in_words() in said


def test_the_article_is_met_where_no_fewer_requests_are_served_within_the_slo(
    declared: Declared, tuning: Tuning
) -> None:
    table = tuning.table().set_index("name")
    equal, rival = table.loc[AS_GOOD], table.loc[ARTICLE_HPA]
    assert equal["keeps_slo"]
    ratio = equal["gpu_hours"] / rival["gpu_hours"]
    assert f"{ratio:.2f} times with {AS_GOOD}: at most 0.7 holds." in answer(declared, tuning)


def test_the_steps_lead_from_the_bound_to_the_winner(declared: Declared, tuning: Tuning) -> None:
    found = steps_to_the_bound(declared, tuning)
    assert found["gpu_hours"].is_monotonic_increasing
    assert found["added"].sum() == pytest.approx(
        found["gpu_hours"].iloc[-1] - found["gpu_hours"].iloc[0]
    )
