"""The committed search says what its declaration asks, and where the gap to the bound comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.autoscaling import HERE, Declared, answer, steps_to_the_bound
from workbench.tune import Tuning

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


def test_the_steps_lead_from_the_bound_to_the_winner(declared: Declared, tuning: Tuning) -> None:
    found = steps_to_the_bound(declared, tuning)
    assert found["gpu_hours"].is_monotonic_increasing
    assert found["added"].sum() == pytest.approx(
        found["gpu_hours"].iloc[-1] - found["gpu_hours"].iloc[0]
    )
