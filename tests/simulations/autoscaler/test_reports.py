"""What the rule does in situations that people reported of LLM serving, and what it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from serving.hpa import (
    Behavior,
    ExternalMetric,
    HpaSpec,
    Metric,
    MetricIdentifier,
    Target,
    pods_metric,
)
from simulations.autoscaler import Compiled, Metrics, Options, Pod, Sample, State, reconcile

SYNC_S, STARTUP_S = 15.0, 60.0
ARRIVALS_RPS, POD_RPS, QUEUE_TARGET = 100.0, 10.0, 250
NO_LIMITS = Options(legacy_up_factor=1e6, legacy_up_minimum=1e6)


def queue_metric(kind: str) -> Metric:
    field = {"Value": "value", "AverageValue": "average_value"}[kind]
    target = Target.model_validate({"type": kind, field: str(QUEUE_TARGET)})
    source = ExternalMetric(metric=MetricIdentifier(name="queue"), target=target)
    return Metric(type="External", external=source)


def overshoot(
    kind: str, *, behavior: Behavior | None = None, options: Options | None = None
) -> list[int]:
    """Replicas after each sync of a fleet that needs 10, from 1, with a minute of startup."""
    spec = HpaSpec(max_replicas=10**6, metrics=(queue_metric(kind),), behavior=behavior)
    compiled, state = Compiled.of(spec, options), State()
    ready_at_s = [0.0]
    queue, sizes = 0.0, []
    for tick in range(1, 10):
        now_s = tick * SYNC_S
        # A pod is at work in a whole interval if it was ready at its start.
        working = sum(at <= now_s - SYNC_S for at in ready_at_s)
        queue = max(0.0, queue + SYNC_S * (ARRIVALS_RPS - POD_RPS * working))
        pods = [
            Pod(str(i), ready="True" if at <= now_s else "False") for i, at in enumerate(ready_at_s)
        ]
        decision = reconcile(
            compiled,
            state,
            now_s=now_s,
            current=len(pods),
            status_replicas=len(pods),
            pods=pods,
            metrics=Metrics(external={"queue": [math.ceil(queue * 1000)]}),
        )
        state = decision.state
        ready_at_s += [now_s + STARTUP_S] * (decision.desired - len(pods))
        sizes.append(decision.desired)
    return sizes


def test_overshoot_by_value_starts_when_pods_become_ready() -> None:
    """A design text has 1, 6, 65, 1053, 22745 by t = 60: it multiplies pods that are not ready.

    Source:  llm-d-autoscaling PR 1019, with upstream's rule.
    """
    assert overshoot("Value", options=NO_LIMITS) == [6, 11, 17, 22, 162, 324, 490, 542, 2819]
    assert overshoot("Value", behavior=Behavior()) == [5, 10, 17, 22, 44, 88, 176, 352, 704]


@pytest.mark.parametrize(
    ("behavior", "options", "peak"),
    [(None, NO_LIMITS, 27), (Behavior(), Options(), 30), (None, Options(), 31)],
)
def test_overshoot_by_average_value_is_threefold(
    behavior: Behavior | None, options: Options, peak: int
) -> None:
    assert max(overshoot("AverageValue", behavior=behavior, options=options)) == peak


def sizes(
    spec: HpaSpec, current: int, values: Sequence[float | None], steps: int, **pod: Any
) -> list[int]:
    """Sizes over some passes in which every pod goes on to report what it did."""
    compiled, state, found = Compiled.of(spec), State(log=()), []
    for step in range(steps):
        known = [*values, *[values[-1]] * current][:current]
        decision = reconcile(
            compiled,
            state,
            now_s=step * SYNC_S,
            current=current,
            status_replicas=current,
            pods=[Pod(str(i), **pod) for i in range(current)],
            metrics=Metrics(
                pods={
                    "m": {
                        str(i): Sample(int(v * 1000)) for i, v in enumerate(known) if v is not None
                    }
                }
            ),
        )
        state, current = decision.state, decision.desired
        found.append(current)
    return found


def test_a_metric_that_is_high_with_any_traffic_has_no_fixed_point_below_the_maximum() -> None:
    """GPU utilisation is near its target with one request in flight (dcgm-exporter 301, 269)."""
    spec = HpaSpec(max_replicas=16, metrics=(pods_metric("m", 60),))
    assert sizes(spec, 1, [95.0], 6) == [2, 4, 7, 12, 16, 16]
    narrow = HpaSpec(max_replicas=4, metrics=(pods_metric("m", 10),))
    assert sizes(narrow, 1, [49.0], 1) == [4]


def test_pods_that_report_nothing_yet_do_not_multiply() -> None:
    """Another autoscaler went 2, 4, 8, 16 with two pods ready (aibrix 2670); this one stays at 4."""
    spec = HpaSpec(max_replicas=100, metrics=(pods_metric("m", 10),))
    assert sizes(spec, 4, [20.0, 20.0, None, None], 5) == [4] * 5
    pods = [Pod("0"), Pod("1"), Pod("2", "Pending", "False"), Pod("3", "Pending", "False")]
    decision = reconcile(
        Compiled.of(spec),
        State(),
        now_s=0.0,
        current=4,
        status_replicas=4,
        pods=pods,
        metrics=Metrics(pods={"m": {"0": Sample(20000), "1": Sample(20000)}}),
    )
    assert decision.desired == 4
    # A loading pod that answers already counts, ready or not: its 0 pulls the average down too.
    assert sizes(spec, 4, [20.0, 20.0, 0.0, 0.0], 1, ready="False") == [4]


def test_a_metric_that_cannot_reach_its_target_never_scales_up() -> None:
    """requests_processing is at most the slot count, 1, and the target was 2 (LLMKube 482)."""
    spec = HpaSpec(max_replicas=10, metrics=(pods_metric("m", 2),))
    assert sizes(spec, 1, [1.0], 10) == [1] * 10
    assert sizes(spec, 3, [1.0], 2) == [2, 2]  # and down as far as the window allows


def test_a_workload_that_is_wholly_unready_shrinks_to_its_minimum() -> None:
    """Readiness that fails under overload: 0 ready pods times any ratio (kubernetes 130130)."""
    spec = HpaSpec(min_replicas=2, max_replicas=50, metrics=(queue_metric("Value"),))
    decision = reconcile(
        Compiled.of(spec),
        State(log=()),
        now_s=0.0,
        current=10,
        status_replicas=10,
        pods=[Pod(str(i), ready="False") for i in range(10)],
        metrics=Metrics(external={"queue": [10_000_000]}),
    )
    assert (decision.desired, decision.rescale_reason) == (2, "All metrics below target")
    assert decision.reason == "TooFewReplicas"
    by_average = HpaSpec(min_replicas=2, max_replicas=50, metrics=(queue_metric("AverageValue"),))
    again = reconcile(
        Compiled.of(by_average),
        State(log=()),
        now_s=0.0,
        current=10,
        status_replicas=10,
        pods=[Pod(str(i), ready="False") for i in range(10)],
        metrics=Metrics(external={"queue": [10_000_000]}),
    )
    assert again.desired == 20  # 40, which the legacy limit halves


def test_pods_that_find_no_gpu_do_not_keep_the_fleet_from_shrinking() -> None:
    """As it was until Pending pods were left out on the way down (kubernetes 82285, 79158)."""
    spec = HpaSpec(max_replicas=20, metrics=(pods_metric("m", 100),))
    running = [Pod(str(i)) for i in range(4)]
    pending = [Pod(str(i), "Pending", "False", started_s=None) for i in range(4, 10)]
    decision = reconcile(
        Compiled.of(spec),
        State(log=()),
        now_s=0.0,
        current=10,
        status_replicas=10,
        pods=[*running, *pending],
        metrics=Metrics(pods={"m": {pod.name: Sample(50_000) for pod in running}}),
    )
    assert decision.desired == 2


def test_a_lower_maximum_evicts_past_the_window() -> None:
    """Queue noise that moves maxReplicas evicts pods at once (llm-d-autoscaling 1427)."""
    spec = HpaSpec(max_replicas=5, metrics=(pods_metric("m", 1),), behavior=Behavior())
    decision = reconcile(
        Compiled.of(spec),
        State(),
        now_s=0.0,
        current=9,
        status_replicas=9,
        pods=[],
        metrics=Metrics(),
    )
    assert (decision.desired, decision.metrics) == (5, ())
    assert decision.rescale_reason == "Current number of replicas above Spec.MaxReplicas"
    assert [event.change for event in decision.state.downs] == [4]
