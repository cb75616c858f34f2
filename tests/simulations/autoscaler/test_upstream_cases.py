"""The functions against upstream's own test cases, where the shared table of them is at hand."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from serving.hpa import UNCHECKED, HpaSpec, Metric, ScalingRules, quantity
from simulations.autoscaler import (
    Compiled,
    Condition,
    Container,
    Decision,
    Metrics,
    Options,
    Pod,
    Sample,
    State,
    Usage,
    reconcile,
)
from simulations.autoscaler import behavior as b

TABLE = Path(__file__).resolve().parents[4] / "shared" / "hpa" / "horizontal_cases.json"
CASES: list[dict[str, Any]] = json.loads(TABLE.read_text())["cases"] if TABLE.exists() else []
DOWN_WINDOW_S = 300.0

needs_table = pytest.mark.skipif(not CASES, reason=f"{TABLE.name} is not at hand")


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(c, id=c["id"]) for c in CASES if c["kind"] == kind]


def rules(given: dict[str, Any] | None) -> ScalingRules | None:
    if given is None:
        return None
    policies = given.get("policies")
    return ScalingRules(
        stabilization_window_seconds=given.get("stabilization_window_s"),
        select_policy=given.get("select_policy"),
        tolerance=quantity(given["tolerance"]) if given.get("tolerance") is not None else None,
        policies=None
        if policies is None
        else tuple(
            {"type": p["type"], "value": p["value"], "period_seconds": p["period_s"]}
            for p in policies
        ),
    )


def events(given: list[dict[str, Any]]) -> b.Events:
    return tuple(
        b.ScaleEvent(e["replica_change"], e["time_s"], e.get("outdated", False)) for e in given
    )


@needs_table
@pytest.mark.parametrize("case", of_kind("legacy_limits"))
def test_legacy_limits(case: dict[str, Any]) -> None:
    found = b.legacy_limits(
        case["current_replicas"],
        case["desired_replicas"],
        case["min_replicas"],
        case["max_replicas"],
        case["scale_up_limit_factor"],
        case["scale_up_limit_minimum"],
    )
    assert found == (case["expected"]["replicas"], case["expected"]["reason"])


@needs_table
@pytest.mark.parametrize("case", of_kind("scale_up_limit") + of_kind("scale_down_limit"))
def test_limits(case: dict[str, Any]) -> None:
    ups, downs = events(case["scale_up_events"]), events(case["scale_down_events"])
    current = case["current_replicas"]
    if case["kind"] == "scale_up_limit":
        found = b.up_limit(current, ups, downs, b.Rules.up(rules(case["rules"])), 0.0)
    else:
        down = b.Rules.down(rules(case["rules"]), DOWN_WINDOW_S)
        found = b.down_limit(current, ups, downs, down, 0.0)
    assert found == case["expected"]["limit"]


@needs_table
@pytest.mark.parametrize("case", of_kind("stabilize_legacy"))
def test_legacy_stabilization(case: dict[str, Any]) -> None:
    log = tuple(b.Recommendation(r["recommendation"], r["time_s"]) for r in case["recommendations"])
    window_s = case["downscale_stabilization_window_s"]
    found, after = b.stabilize_legacy(log, case["desired_replicas"], 0.0, window_s)
    assert found == case["expected"]["replicas"]
    assert len(after) == case["expected"]["recommendation_log_length"]


@needs_table
@pytest.mark.parametrize("case", of_kind("stabilize_with_behavior"))
def test_stabilization(case: dict[str, Any]) -> None:
    log = tuple(b.Recommendation(r["recommendation"], r["time_s"]) for r in case["recommendations"])
    found, after = b.stabilize(
        log,
        case["desired_replicas"],
        case["current_replicas"],
        0.0,
        case["scale_up_stabilization_window_s"],
        case["scale_down_stabilization_window_s"],
    )
    assert found == case["expected"]["replicas"]
    if case["expected"]["recommendation_log"] is not None:
        assert [r.replicas for r in after] == case["expected"]["recommendation_log"]


@needs_table
@pytest.mark.parametrize("case", of_kind("behavior_rate"))
def test_rate_limit(case: dict[str, Any]) -> None:
    found = b.rate_limit(
        case["current_replicas"],
        case["desired_replicas"],
        case["min_replicas"],
        case["max_replicas"],
        ups=events(case["scale_up_events"]),
        downs=events(case["scale_down_events"]),
        up=b.Rules.up(rules(case["scale_up_rules"])),
        down=b.Rules.down(rules(case["scale_down_rules"]), DOWN_WINDOW_S),
        now_s=0.0,
    )
    assert found == (case["expected"]["replicas"], case["expected"]["reason"])


@needs_table
@pytest.mark.parametrize("case", of_kind("store_scale_event"))
def test_scale_events(case: dict[str, Any]) -> None:
    before = events(case["events_before"])
    assert b.changed_within(before, 60.0, 0.0) == case["expected"]["replicas_change_in_60s_before"]
    if case["rules"] is None:
        return  # spec.behavior is nil: nothing is stored
    given = rules(case["rules"])
    side = b.Rules.up(given) if case["direction"] == "up" else b.Rules.down(given, DOWN_WINDOW_S)
    after = b.stored(before, abs(case["new_replicas"] - case["previous_replicas"]), side, 0.0)
    wanted = case["expected"]["events_after"]
    assert [(e.change, e.outdated) for e in after] == [
        (e["replica_change"], e.get("outdated", False)) for e in wanted
    ]


def metric_of(metric: dict[str, Any]) -> dict[str, Any]:
    """A metric of the table in the API's fields. One of upstream's types is none on purpose."""
    target = metric.get("target") or {}
    aim: dict[str, Any] = {"type": target.get("type")}
    if "value_milli" in target:
        aim["value"] = f"{target['value_milli']}m"
    if "average_value_milli" in target:
        aim["average_value"] = f"{target['average_value_milli']}m"
    aim["average_utilization"] = target.get("average_utilization_pct")
    source: dict[str, Any] = {"target": aim}
    kind = metric["type"]
    if kind in ("Resource", "ContainerResource"):
        source |= {"name": metric["resource"]}
    else:
        source |= {"metric": {"name": metric.get("metric_name")}}
    if kind == "ContainerResource":
        source |= {"container": metric["container"]}
    if kind == "Object":
        source |= {"described_object": {"kind": "Deployment", "name": "some-deployment"}}
    field = {"ContainerResource": "container_resource"}.get(kind, kind.lower())
    return {"type": kind} | ({field: source} if field in Metric.model_fields else {})


def spec_of(case: dict[str, Any]) -> HpaSpec:
    """The spec of a case. Some of them would be refused by the API server, so nobody asks it."""
    behavior = case["behavior"]
    given = {
        "min_replicas": case["min_replicas"],
        "max_replicas": case["max_replicas"],
        "metrics": [metric_of(metric) for metric in case["metrics"]],
        "behavior": None
        if behavior is None
        else {
            "scale_up": rules(behavior.get("scale_up")),
            "scale_down": rules(behavior.get("scale_down")),
        },
    }
    return HpaSpec.model_validate(given, context=UNCHECKED)


def options_of(case: dict[str, Any]) -> Options:
    """Upstream's test harness, under the rules that a case is for."""
    rule, zero = case.get("scale_to_zero_rule"), case.get("scale_to_zero_feature")
    tolerance = case.get("configurable_tolerance_feature")
    return Options(
        cpu_initialization_s=120.0,
        initial_readiness_delay_s=10.0,
        legacy_up_factor=8.0,
        scaled_to_zero_condition=rule == "1_36",
        scale_to_zero=zero is not False,
        configurable_tolerance=tolerance is not False,
    )


def pod_of(given: dict[str, Any]) -> Pod:
    return Pod(
        name=given["name"],
        phase=given["phase"],
        ready=given["ready"],
        deleted=given["deleted"],
        started_s=given["start_time_s"],
        ready_changed_s=given["ready_transition_time_s"],
        containers=tuple(Container(c, {"cpu": m}) for c, m in given["requests_milli"].items()),
    )


def metrics_of(case: dict[str, Any]) -> Metrics:
    """The answers of the metrics APIs, without those that fail."""
    names = [m["metric_name"] for m in case["metrics"] if "metric_name" in m]
    samples = {
        v["pod"]: Sample(v["value_milli"], v["timestamp_s"], v["window_s"])
        for v in case["pods_metric_values"] or []
    }
    usages = {
        v["pod"]: Usage(v["containers"], v["timestamp_s"], v["window_s"])
        for v in case["resource_metrics"] or []
    }
    faults = case.get("faults") or []
    custom = [] if "custom_metrics" in faults else names
    return Metrics(
        pods=dict.fromkeys(custom, samples),
        objects=dict.fromkeys(custom, case["object_value_milli"]),
        external={}
        if "external_metrics" in faults
        else dict.fromkeys(names, case["external_values_milli"]),
        resources={} if "resource_metrics" in faults else {"cpu": usages},
    )


def selected(labels: dict[str, str], selector: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def reconciled(case: dict[str, Any]) -> Decision:
    faults = case.get("faults") or []
    log, text = case["initial_recommendations"], case.get("scale_selector")
    pods = [p for p in case["pods"] if selected(p["labels"], {"name": "test-pod"})]
    state = State(
        log=None
        if log is None
        else tuple(b.Recommendation(r["recommendation"], r["time_s"]) for r in log),
        conditions=tuple(
            Condition(c["type"], c["status"] == "True", c["reason"])
            for c in case.get("initial_conditions") or []
        ),
    )
    return reconcile(
        Compiled.of(spec_of(case), options_of(case)),
        state,
        now_s=0.0,
        current=case["scale_spec_replicas"],
        status_replicas=case["scale_status_replicas"],
        pods=[pod_of(p) for p in pods],
        metrics=metrics_of(case),
        selector="name=test-pod" if text is None else text,
        rivals=[
            other["name"]
            for other in case.get("other_hpas") or []
            if any(selected(p["labels"], other["selector"]) for p in pods)
        ],
        read_fails="get_scale" in faults,
        write_fails="update_scale" in faults,
    )


@needs_table
@pytest.mark.parametrize("case", of_kind("reconcile"))
def test_reconcile(case: dict[str, Any]) -> None:
    decision, expected = reconciled(case), case["expected"]
    assert decision.desired == expected["desired_replicas"]
    assert decision.scaled == expected["scaled"]
    assert bool(decision.errors) == expected["reconcile_error"]
    assert [(c.type, str(c.status), c.reason) for c in decision.conditions] == [
        (c["type"], c["status"], c["reason"]) for c in expected["conditions"]
    ]
    if expected["cpu_utilization_pct"] is not None:
        (found,) = [
            m.replicas for m in decision.metrics if m and m.replicas.utilization is not None
        ]
        assert found.utilization == expected["cpu_utilization_pct"]


@needs_table
def test_every_case_is_run() -> None:
    kinds = collections.Counter(case["kind"] for case in CASES)
    assert sum(kinds.values()) == 186
    assert kinds.keys() == {
        *("legacy_limits", "scale_up_limit", "scale_down_limit", "stabilize_legacy"),
        *("stabilize_with_behavior", "behavior_rate", "store_scale_event", "reconcile"),
    }
