"""One metric -> replicas: upstream's tables, arithmetic to the last bit, and what is versioned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.autoscaler import Container, Options, Pod, Sample, Usage, calculator
from simulations.autoscaler.pods import samples_of
from simulations.autoscaler.values import MetricError, Replicas, Tolerances

from .replica_tables import LONG_AGO_S, MAX_INT64, Case, pod_name, table

HARNESS = Options(cpu_initialization_s=120.0, initial_readiness_delay_s=10.0)
RESOURCE = {case.name: case for case in table("resource")}


def rows(title: str) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in table(title)])


def utilization(
    case: Case, options: Options = HARNESS, name_of: Callable[[int], str] = pod_name
) -> Replicas:
    usages = {
        name_of(i): Usage({f"container{j}": v for j, v in enumerate(levels, 1)}, LONG_AGO_S)
        for i, levels in enumerate(case.levels)
    }
    return calculator.utilization(
        case.now,
        case.pods(),
        samples_of(usages, case.container, options),
        case.target,
        resource="cpu",
        container=case.container,
        tolerances=Tolerances(*case.tolerance),
        options=options,
        now_s=0.0,
    )


def average(case: Case, samples: dict[str, Sample] | None = None, **changes: Any) -> Replicas:
    arguments: dict[str, Any] = {
        "tolerances": Tolerances(*case.tolerance),
        "options": HARNESS,
        "now_s": 0.0,
    }
    if samples is None:
        samples = {pod_name(i): Sample(v, LONG_AGO_S) for i, v in enumerate(case.totals)}
    return calculator.average(case.now, case.pods(), samples, case.target, **(arguments | changes))


@rows("resource")
def test_utilization(case: Case) -> None:
    assert utilization(case) == Replicas(case.replicas, case.usage, case.percent)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"levels": ()}, "did not receive metrics"),
        ({"requests": ()}, "missing request for cpu in container container1 of Pod test-pod-0"),
        ({"container": "container3"}, "did not receive metrics"),
        ({"phase": "PPP"}, "did not receive metrics"),
        ({"now": 0}, "no pods returned by selector"),
    ],
)
def test_what_fails_a_resource(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(MetricError, match=problem):
        utilization(replace(RESOURCE["up"], **changes))


def test_metrics_of_other_pods_alone() -> None:
    with pytest.raises(MetricError, match="no metrics returned matched known pods"):
        utilization(RESOURCE["up"], name_of=lambda i: f"an-older-pod-{i}")


@rows("succeeded")
def test_succeeded_pods_are_ignored_only_since_lately(case: Case) -> None:
    wanted = Replicas(case.replicas, case.usage, case.percent)
    assert utilization(case, replace(HARNESS, succeeded_pods_ignored=True)) == wanted
    # Before, a pod that ended without a metric is missing, and damps any change.
    assert utilization(case) == replace(wanted, count=case.now)


@rows("pods")
def test_average_over_pods(case: Case) -> None:
    assert average(case) == Replicas(case.replicas, case.usage)


@rows("value")
def test_total_value(case: Case) -> None:
    usage = calculator.sum_of_series(case.totals)
    tolerances = Tolerances(*case.tolerance)
    found = calculator.total_value(case.now, case.pods(), usage, case.target, tolerances)
    assert found == Replicas(case.replicas, case.usage)


@rows("average_value")
def test_total_average(case: Case) -> None:
    usage = calculator.sum_of_series(case.totals, per_pod=True)
    found = calculator.total_average(case.now, usage, case.target, Tolerances(*case.tolerance))
    assert found == Replicas(case.replicas, case.usage)


@pytest.mark.parametrize(("usage", "replicas", "share"), [(20000, 0, 0), (1000, 3, 334)])
def test_the_share_that_is_reported(usage: int, replicas: int, share: int) -> None:
    assert calculator.per_pod_usage(usage, replicas) == share
    assert calculator.per_pod_usage(MAX_INT64, 1) == MAX_INT64


# -- arithmetic that must be copied, not improved ------------------------------------------------


def of_pods(count: int, value: int, target: int, **changes: Any) -> int:
    return average(Case("", count, ((value,),) * count, target), **changes).count


def test_a_ratio_is_formed_before_it_is_multiplied() -> None:
    assert 7 / 100 * 100 > 7
    assert of_pods(100, 7, 100) == 8


def test_both_ends_belong_to_the_tolerance_since_1_33() -> None:
    older = Tolerances(0.1, 0.1, as_distance=True)
    assert of_pods(10, 55, 50) == 10
    assert of_pods(10, 55, 50, tolerances=older) == 11
    assert of_pods(10, 45, 50) == of_pods(10, 45, 50, tolerances=older) == 10


@pytest.mark.parametrize(("up", "wanted"), [(0.02, 1), (0.01, 2)])
def test_utilization_is_truncated_to_whole_percent(up: float, wanted: int) -> None:
    """102.9 % of the requests counts as 102 %."""
    case = Case("", 1, ((1029, 1029),), 100, requests=(1000,), tolerance=(0.1, up))
    assert utilization(case) == Replicas(wanted, 2058, 102)


def test_averages_truncate_towards_zero() -> None:
    assert average(Case("", 2, ((-3,), (-4,)), 10)).usage == -3  # by Go; Python would say -4
    assert average(Case("", 2, ((3,), (4,)), 10)).usage == 3


def test_a_negative_series_of_an_average_value_looks_like_an_overflow() -> None:
    assert calculator.sum_of_series([-5, 3]) == -2
    assert calculator.sum_of_series([-5, 3], per_pod=True) == MAX_INT64
    assert calculator.sum_of_series([]) == 0


def test_from_zero_there_is_no_tolerance_and_nobody_to_multiply() -> None:
    tolerances = Tolerances(0.1, 0.1)
    for usage, wanted in ((0, 0), (1, 1), (1000, 1), (1001, 2), (5000, 5)):
        assert calculator.total_value(0, [], usage, 1000, tolerances).count == wanted
    with pytest.raises(MetricError, match="no pods returned by selector"):
        calculator.total_value(3, [], 5000, 1000, tolerances)
    assert calculator.total_value(3, [], 1000, 1000, tolerances).count == 3


def test_before_1_26_a_missing_pod_used_its_request_alone() -> None:
    case = RESOURCE["down, target over 100 %"]
    assert utilization(case).count == 2
    assert utilization(case, replace(HARNESS, missing_uses_request=True)).count == 1


def test_before_1_32_one_pod_without_the_container_failed_the_metric() -> None:
    older = replace(HARNESS, absent_container_fails_metric=True)
    with pytest.raises(MetricError, match="container container2 not present in metrics"):
        utilization(RESOURCE["up, failed without container"], older)


def test_a_container_that_a_pod_does_not_have_fails_the_metric() -> None:
    pods = [Pod("a", containers=(Container("one", {"cpu": 1}),))]
    with pytest.raises(MetricError, match="container two not found in Pod a"):
        calculator.utilization(
            1,
            pods,
            {"a": Sample(1)},
            50,
            resource="cpu",
            container="two",
            tolerances=Tolerances(0.1, 0.1),
            options=Options(),
            now_s=0.0,
        )


# -- properties ----------------------------------------------------------------------------------

values = st.dictionaries(st.integers(0, 11), st.integers(0, 10**6), min_size=1)
groups = st.lists(st.tuples(st.sampled_from("RRRRPFS"), st.booleans()), min_size=1, max_size=12)


def case_of(kinds: list[tuple[str, bool]], target: int) -> Case:
    phases = "".join(phase for phase, _ in kinds)
    deleted = "".join("x" if gone else "-" for _, gone in kinds)
    return Case("", len(kinds), (), target, phase=phases, deleted=deleted)


@settings(deadline=None)
@given(groups, values, st.integers(1, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_pods_does_not_matter(
    kinds: list[tuple[str, bool]], known: dict[int, int], target: int, random: Any
) -> None:
    pods = case_of(kinds, target).pods()
    samples = [(pod_name(i), Sample(value)) for i, value in known.items()]

    def run(pods: list[Pod], samples: list[tuple[str, Sample]]) -> Replicas | str:
        tolerances = Tolerances(0.1, 0.1)
        try:
            return calculator.average(
                len(pods),
                pods,
                dict(samples),
                target,
                tolerances=tolerances,
                options=Options(),
                now_s=0.0,
            )
        except MetricError as error:
            return str(error)

    shuffled = random.sample(pods, len(pods)), random.sample(samples, len(samples))
    assert run(*shuffled) == run(pods, samples)


@settings(deadline=None)
@given(groups, values, st.integers(1, 10**6))
def test_pods_without_a_value_damp_a_change_and_never_turn_it(
    kinds: list[tuple[str, bool]], known: dict[int, int], target: int
) -> None:
    case = case_of(kinds, target)
    counted = [p.name for p in case.pods() if not p.deleted and p.phase in ("Running", "Succeeded")]
    samples = {pod_name(i): Sample(v) for i, v in known.items() if pod_name(i) in counted}
    if not samples:
        return
    total = sum(sample.milli for sample in samples.values())
    ratio = total // len(samples) / target
    found = average(replace(case, now=len(kinds)), samples).count
    if ratio > 1:
        assert found >= min(len(kinds), math.ceil(ratio * len(samples)))
        # One more than the whole asks for, as doubles are rounded up.
        assert found <= max(len(kinds), math.ceil(total / target) + 1)
    else:
        assert found <= len(kinds)
