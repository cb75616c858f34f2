"""Stabilization and rate limits, on both paths and by version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.hpa import Behavior, HpaSpec, ScalingPolicy, ScalingRules
from simulations.autoscaler import Options, State
from simulations.autoscaler import behavior as b

from .passes import one_pass, spec


@settings(deadline=None)
@given(
    st.integers(4, 40),
    st.floats(0, 6),
    st.lists(st.tuples(st.integers(1, 40), st.floats(-290, -1)), max_size=5),
)
def test_both_paths_agree_where_their_defaults_say_the_same(
    current: int, level: float, recent: list[tuple[int, float]]
) -> None:
    """From 4 replicas on both may double; both wait for 300 s on the way down.

    They differ where an older recommendation is above the current size, which only the legacy path
    follows.
    """
    log = tuple(b.Recommendation(min(replicas, current), at_s) for replicas, at_s in recent)
    state = State(log=log)
    found = [
        one_pass(spec(max_replicas=1000, behavior=known), current, level, state)
        for known in (None, Behavior())
    ]
    assert found[0].desired == found[1].desired
    assert [c.reason for c in found[0].conditions[1:]] == [
        c.reason for c in found[1].conditions[1:]
    ]


@pytest.mark.parametrize(("behavior", "wanted"), [(None, 10), (Behavior(), 1)])
def test_a_recommendation_as_old_as_the_window_counts_on_the_legacy_path_alone(
    behavior: Behavior | None, wanted: int
) -> None:
    state = State(log=(b.Recommendation(10, -300.0),))
    assert one_pass(spec(behavior=behavior), 10, 0.1, state).desired == wanted


def test_only_the_legacy_path_follows_an_old_recommendation_upwards() -> None:
    state = State(log=(b.Recommendation(9, -60.0),))
    assert one_pass(spec(), 5, 1.2, state).desired == 9
    assert one_pass(spec(behavior=Behavior()), 5, 1.2, state).desired == 6


def grow(**rules: Any) -> HpaSpec:
    policies = tuple(
        ScalingPolicy(type=kind, value=value, period_seconds=60)
        for kind, value in rules.pop("policies", ())
    )
    fields = rules | ({"policies": policies} if policies else {})
    return spec(max_replicas=1000, behavior=Behavior(scale_up=ScalingRules(**fields)))


@pytest.mark.parametrize(
    ("rules", "wanted", "reason"),
    [
        ({}, 200, "ScaleUpLimit"),
        ({"policies": [("Percent", 10)]}, 111, "ScaleUpLimit"),  # 100 * 1.1 is a bit more than 110
        ({"policies": [("Pods", 7), ("Percent", 10)], "select_policy": "Min"}, 107, "ScaleUpLimit"),
        ({"select_policy": "Disabled"}, 100, "ScaleUpLimit"),
        ({"policies": [("Pods", 1000)]}, 500, "SucceededRescale"),
    ],
)
def test_policies_of_growth(rules: dict[str, Any], wanted: int, reason: str) -> None:
    decision = one_pass(grow(**rules), 100, 5.0)
    assert (decision.desired, decision.reason) == (wanted, reason)


@pytest.mark.parametrize(("current", "percent", "wanted"), [(10, 90, 1), (20, 80, 3), (10, 100, 1)])
def test_a_percentage_of_shrinking_is_truncated(current: int, percent: int, wanted: int) -> None:
    """int(10 * (1 - 0.9)) is 0, which the minimum lifts, and int(20 * (1 - 0.8)) is 3."""
    policy = ScalingPolicy(type="Percent", value=percent, period_seconds=60)
    rules = ScalingRules(policies=(policy,), stabilization_window_seconds=0)
    of = spec(behavior=Behavior(scale_down=rules))
    assert one_pass(of, current, 0.0).desired == wanted
    assert (
        b.down_limit(
            10,
            (),
            (),
            b.Rules.down(
                ScalingRules(
                    policies=(ScalingPolicy(type="Percent", value=90, period_seconds=60),)
                ),
                300.0,
            ),
            0.0,
        )
        == 0
    )


def test_before_1_26_a_period_looked_at_its_own_direction_only() -> None:
    of = grow(policies=[("Pods", 5)])
    state = State(log=(), ups=(b.ScaleEvent(5, -30.0),), downs=(b.ScaleEvent(3, -20.0),))
    assert one_pass(of, 10, 5.0, state).desired == 13
    assert one_pass(of, 10, 5.0, state, Options.at("1.25")).desired == 10


def test_the_tolerance_of_a_direction_counts_where_its_gate_is_open() -> None:
    of = spec(behavior=Behavior(scale_up=ScalingRules(tolerance="0.5")))
    assert one_pass(of, 10, 1.4).desired == 10
    assert one_pass(of, 10, 1.4, options=Options.at("1.34")).desired == 14
    assert (
        one_pass(of, 10, 1.4, options=Options.at("1.33", configurable_tolerance=True)).desired == 10
    )
    assert one_pass(of, 10, 0.8, now_s=0.0).desired == 8


def test_an_unstable_recommendation_waits_for_the_window_of_its_direction() -> None:
    up = ScalingRules(stabilization_window_seconds=60)
    of = spec(behavior=Behavior(scale_up=up))
    state = State(log=(b.Recommendation(6, -30.0), b.Recommendation(4, -61.0)))
    decision = one_pass(of, 5, 2.0, state)
    assert (decision.desired, decision.conditions[0].reason) == (6, "SucceededRescale")
    held = one_pass(of, 5, 2.0, State(log=(b.Recommendation(5, -30.0),)))
    assert (held.desired, held.reason) == (5, "ScaleUpStabilized")
