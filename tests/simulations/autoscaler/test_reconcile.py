"""A pass as a whole: bounds, memory, several metrics, and what is said about it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from serving.hpa import UNCHECKED, Behavior, HpaSpec, ScalingPolicy, ScalingRules, pods_metric
from simulations.autoscaler import Container, Metrics, Options, Pod, Sample, State, Usage
from simulations.autoscaler import behavior as b

from .passes import external, one_pass, spec

policies = st.builds(
    lambda kind, value, period: ScalingPolicy(type=kind, value=value, period_seconds=period),
    st.sampled_from(["Pods", "Percent"]),
    st.integers(1, 300),
    st.integers(1, 1800),
)
rules = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "stabilization_window_seconds": st.integers(0, 3600),
        "select_policy": st.sampled_from(["Max", "Min", "Disabled"]),
        "policies": st.lists(policies, min_size=1, max_size=3).map(tuple),
        "tolerance": st.sampled_from(["0", "50m", "0.3", 1]),
    },
).map(lambda given: ScalingRules(**given))
behaviors = st.none() | st.builds(
    lambda up, down: Behavior(scale_up=up, scale_down=down), rules, rules
)
logs = st.none() | st.lists(
    st.builds(b.Recommendation, st.integers(0, 60), st.floats(-4000, 0)), max_size=6
).map(tuple)
events = st.lists(st.builds(b.ScaleEvent, st.integers(1, 30), st.floats(-2000, 0)), max_size=5).map(
    tuple
)
states = st.builds(State, logs, events, events)


@settings(deadline=None)
@given(
    st.integers(0, 10),
    st.integers(0, 30),
    st.integers(0, 50),
    behaviors,
    states,
    st.floats(0, 20),
    st.sampled_from(["1.25", "1.33", "1.36", "1.38"]),
)
def test_a_new_size_is_within_its_bounds_and_nothing_is_changed_in_place(
    least: int,
    room: int,
    current: int,
    behavior: Behavior | None,
    state: State,
    level: float,
    version: str,
) -> None:
    given = {
        "min_replicas": least,
        "max_replicas": max(1, least + room),
        "metrics": (pods_metric("m", 10), external(10)),
        "behavior": behavior,
    }
    of = HpaSpec.model_validate(given)
    before = copy.deepcopy(state)
    options = Options.at(version)
    decision = one_pass(of, current, level, state, options)
    assert state == before
    assert one_pass(of, current, level, state, options) == decision
    assert decision.scaled == (decision.desired != current)
    if decision.scaled or of.min_replicas <= current <= of.max_replicas:
        assert of.min_replicas <= decision.desired <= of.max_replicas
    else:
        assert current == 0


# -- memory ----------------------------------------------------------------------------------------


def test_a_new_controller_waits_a_whole_window_before_it_shrinks() -> None:
    of, state = spec(), State()
    sizes = []
    for now_s in (0.0, 285.0, 300.0, 301.0):
        decision = one_pass(of, 10, 0.1, state, now_s=now_s)
        state = decision.state
        sizes.append(decision.desired)
    assert sizes == [10, 10, 10, 1]
    assert one_pass(of, 10, 0.1, state.restarted(), now_s=302.0).reason == "ScaleDownStabilized"
    assert state.restarted().conditions == state.conditions


def test_a_failed_pass_records_nothing() -> None:
    decision = one_pass(spec(), 5, 1.0, metrics=Metrics())
    assert decision.state.log == ()
    assert decision.errors == ("FailedGetPodsMetric",)
    assert [event.reason for event in decision.events] == [
        "FailedGetPodsMetric",
        "FailedComputeMetricsReplicas",
    ]


def test_a_write_that_fails_is_no_scale_event() -> None:
    of = spec(behavior=Behavior())
    assert len(one_pass(of, 5, 2.0).state.ups) == 1
    failed = one_pass(of, 5, 2.0, write_fails=True)
    assert (failed.desired, failed.state.ups, failed.reason) == (5, (), "FailedUpdateScale")
    assert one_pass(spec(), 5, 2.0).state.ups == ()  # without spec.behavior nobody would read it


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    first = one_pass(spec(), 5, 1.0, now_s=10.0)
    second = one_pass(spec(), 5, 1.0, first.state, now_s=25.0)
    assert {c.changed_s for c in second.conditions} == {10.0}
    third = one_pass(spec(), 5, 1.0, second.state, now_s=40.0, metrics=Metrics())
    changed = {c.type: c.changed_s for c in third.conditions}
    assert changed == {"AbleToScale": 10.0, "ScalingActive": 40.0, "ScalingLimited": 10.0}


# -- several metrics -------------------------------------------------------------------------------


def test_a_metric_that_is_lost_stops_the_way_down_and_not_the_way_up() -> None:
    of = spec(metrics=(pods_metric("m", 10), external(10)))
    for level, wanted, active in (
        (2.0, 10, "ValidMetricFound"),
        (1.0, 5, "ValidMetricFound"),
        (0.2, 5, "FailedGetExternalMetric"),
    ):
        known = {"m": {str(i): Sample(round(level * 10_000)) for i in range(5)}}
        decision = one_pass(of, 5, level, metrics=Metrics(pods=known))
        assert decision.desired == wanted
        assert decision.errors == ("FailedGetExternalMetric",)
        assert {c.type: c.reason for c in decision.conditions}["ScalingActive"] == active


def test_a_negative_metric_is_no_negative_size() -> None:
    decision = one_pass(spec(metrics=(external(10),)), 3, -5.0)
    assert decision.desired == 1
    assert [known.replicas for known in decision.state.log or ()] == [0]


def test_without_metrics_it_is_cpu_at_80_percent() -> None:
    usage = {str(i): Usage({"c": 160}, at_s=0.0) for i in range(2)}
    pods = [Pod(str(i), containers=(Container("c", {"cpu": 100}),)) for i in range(2)]
    decision = one_pass(
        HpaSpec(max_replicas=9), 2, 0.0, pods=pods, metrics=Metrics(resources={"cpu": usage})
    )
    assert decision.desired == 4
    assert (
        decision.rescale_reason == "cpu resource utilization (percentage of request) above target"
    )


def test_a_gpu_is_no_resource_of_the_metrics_server() -> None:
    target = {"type": "Utilization", "averageUtilization": 70}
    given = {"type": "Resource", "resource": {"name": "nvidia.com/gpu", "target": target}}
    of = HpaSpec.model_validate({"maxReplicas": 9, "metrics": [given]})
    usages = {str(i): Usage({"vllm": None}) for i in range(3)}
    decision = one_pass(of, 3, 0.0, metrics=Metrics(resources={"nvidia.com/gpu": usages}))
    assert (decision.desired, decision.reason) == (3, "FailedGetResourceMetric")
    assert "did not receive metrics" in decision.events[0].message


# -- selectors, options ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "InvalidSelector"),
        ("cheddar cheese", "InvalidSelector"),
        ("app in (a, b), tier != web,!beta,example.com/x", "ReadyForNewScale"),
        ("a=b=c", "InvalidSelector"),
    ],
)
def test_selectors(text: str, reason: str) -> None:
    assert one_pass(spec(), 3, 1.0, selector=text).reason == reason


def test_two_autoscalers_of_the_same_pods_both_stop() -> None:
    decision = one_pass(spec(), 3, 2.0, rivals=["other"])
    assert (decision.desired, decision.reason) == (3, "AmbiguousSelector")


def test_a_scale_that_cannot_be_read() -> None:
    decision = one_pass(spec(), 5, 2.0, read_fails=True)
    assert (decision.reason, decision.desired, decision.scaled) == ("FailedGetScale", 5, False)


def test_the_defaults_are_those_of_1_37() -> None:
    assert Options.at("1.37") == Options.at("v1.37.2") == Options()
    assert Options.at("1.38") == replace(Options(), succeeded_pods_ignored=True)
    oldest = Options.at("1.25")
    assert oldest.missing_uses_request
    assert oldest.tolerance_as_distance
    assert not oldest.pod_level_resources
    for wrong in ("1.24", "new", "1"):
        with pytest.raises(InputError, match="version"):
            Options.at(wrong)


@settings(deadline=None)
@given(st.lists(st.integers(-5, 40), min_size=1, max_size=4), st.integers(0, 12))
def test_the_largest_proposal_wins(levels: list[int], current: int) -> None:
    """Each External metric asks for its level of replicas (AverageValue, one a replica)."""
    assume(current > 0)
    metrics = [
        {
            "type": "External",
            "external": {
                "metric": {"name": f"m{i}"},
                "target": {"type": "AverageValue", "averageValue": 1},
            },
        }
        for i in range(len(levels))
    ]
    given = {"minReplicas": 0, "maxReplicas": 1000, "metrics": metrics}
    of = HpaSpec.model_validate(given, context=UNCHECKED)
    options = Options(legacy_up_minimum=1e6, tolerance=0.0)
    answers = Metrics(external={f"m{i}": [max(0, v) * 1000] for i, v in enumerate(levels)})
    found = one_pass(of, current, 0.0, options=options, metrics=answers)
    assert found.desired == max(0, *levels)
