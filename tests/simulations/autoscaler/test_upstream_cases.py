"""The functions against upstream's own test cases, where the shared table of them is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.hpa import HpaSpec, ScalingRules, quantity
from simulations.autoscaler import Metrics, Options, Pod, State, reconcile
from simulations.autoscaler import behavior as b
from simulations.autoscaler.reconcile import Compiled

TABLE = Path(__file__).resolve().parents[4] / "shared" / "hpa" / "horizontal_cases.json"
CASES: list[dict[str, Any]] = json.loads(TABLE.read_text())["cases"] if TABLE.exists() else []
HARNESS = Options(legacy_up_factor=8.0)
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


def spec_of(case: dict[str, Any]) -> HpaSpec:
    metrics = []
    for metric in case["metrics"]:
        target = metric["target"]
        aim: dict[str, Any] = {"type": target["type"]}
        if target["type"] == "Value":
            aim["value"] = f"{target['value_milli']}m"
        else:
            aim["average_value"] = f"{target['average_value_milli']}m"
        source: dict[str, Any] = {"metric": {"name": metric["metric_name"]}, "target": aim}
        if metric["type"] == "Object":
            source["described_object"] = {"kind": "Deployment", "name": "some-deployment"}
        metrics.append({"type": metric["type"], metric["type"].lower(): source})
    behavior = case["behavior"]
    return HpaSpec.model_validate(
        {
            "min_replicas": case["min_replicas"],
            "max_replicas": case["max_replicas"],
            "metrics": metrics,
            "behavior": None
            if behavior is None
            else {
                "scale_up": rules(behavior.get("scale_up")),
                "scale_down": rules(behavior.get("scale_down")),
            },
        }
    )


def whole_passes() -> list[Any]:
    """Passes on the metrics that GPUs have, in a cluster where every API call answers."""
    return [
        pytest.param(c, id=c["id"])
        for c in CASES
        if c["kind"] == "reconcile"
        and c["metrics"]
        and {m["type"] for m in c["metrics"]} <= {"Pods", "Object", "External"}
        and not c.get("faults")
        and not c.get("other_hpas")
        and c["scale_spec_replicas"] > 0
        and c["min_replicas"] > 0
    ]


@needs_table
@pytest.mark.parametrize("case", whole_passes())
def test_reconcile(case: dict[str, Any]) -> None:
    names = [m["metric_name"] for m in case["metrics"]]
    selected = [p for p in case["pods"] if p["labels"].get("name") == "test-pod"]
    pods = [Pod(p["name"], p["phase"], p["ready"] == "True", bool(p["deleted"])) for p in selected]
    values = {v["pod"]: v["value_milli"] for v in case["pods_metric_values"] or []}
    log = case["initial_recommendations"]
    state = State(
        log=None
        if log is None
        else tuple(b.Recommendation(r["recommendation"], r["time_s"]) for r in log)
    )
    decision = reconcile(
        Compiled.of(spec_of(case), HARNESS),
        state,
        now_s=0.0,
        current=case["scale_spec_replicas"],
        status_replicas=case["scale_status_replicas"],
        pods=pods,
        metrics=Metrics(
            pods=dict.fromkeys(names, values),
            objects=dict.fromkeys(names, case["object_value_milli"]),
            external=dict.fromkeys(names, case["external_values_milli"]),
        ),
    )
    assert decision.desired == case["expected"]["desired_replicas"]
    assert decision.scaled == case["expected"]["scaled"]
