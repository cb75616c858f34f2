"""Zero replicas: who may leave them again."""

from __future__ import annotations

import pytest

from serving.hpa import Behavior, ScalingPolicy, ScalingRules
from simulations.autoscaler import Condition, Options, State

from .passes import external, one_pass, spec

ZERO = State(log=(), conditions=(Condition("ScaledToZero", True, "ScaledToZero"),))
WHO_WAKES = [
    ("1.35", 0, State(log=()), True),
    ("1.35", 1, State(log=()), False),
    ("1.37", 0, State(log=()), False),
    ("1.37", 1, State(log=()), False),
    ("1.37", 0, ZERO, True),
    ("1.37", 3, ZERO, True),
    ("1.36", 0, ZERO, False),  # the gate is closed by default
]


@pytest.mark.parametrize(("version", "least", "state", "wakes"), WHO_WAKES)
def test_who_wakes_from_zero(version: str, least: int, state: State, wakes: bool) -> None:
    of = spec(min_replicas=least, metrics=(external(10),))
    decision = one_pass(of, 0, 2.0, state, Options.at(version))
    assert decision.desired == (max(2, least) if wakes else 0)
    assert (decision.reason == "ScalingDisabled") == (not wakes)


def test_it_remembers_that_it_brought_the_workload_to_zero() -> None:
    of = spec(min_replicas=0, metrics=(external(10),))
    down = one_pass(of, 2, 0.0)
    assert (down.desired, down.conditions[-1].reason) == (0, "ScaledToZero")
    up = one_pass(of, 0, 3.0, down.state.restarted())
    assert up.desired == 3
    by_type = {c.type: c.status for c in up.conditions}
    assert by_type["ScaledToZero"] is False
    # Somebody else's 0 stays.
    assert one_pass(of, 0, 3.0, up.state).reason == "ScalingDisabled"


def test_from_zero_a_raised_minimum_holds_under_policies_too() -> None:
    up = ScalingRules(
        policies=(ScalingPolicy(type="Pods", value=1, period_seconds=60),),
    )
    of = spec(min_replicas=4, metrics=(external(10),), behavior=Behavior(scale_up=up))
    assert one_pass(of, 0, 2.0, ZERO).desired == 4
