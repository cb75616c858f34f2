"""Which pods count, and what they request: upstream's tables (TestGroupPods, TestCalculateRequests)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulations.autoscaler import Container, Options, Pod, Sample, Usage
from simulations.autoscaler.pods import Groups, group, requests, samples_of
from simulations.autoscaler.values import MetricError

HARNESS = Options(cpu_initialization_s=120.0, initial_readiness_delay_s=10.0)
OLD = -1e10


def pod(name: str, **fields: Any) -> Pod:
    """A running pod that has neither a Ready condition nor a start time unless they are given."""
    return Pod(name, **({"ready": None, "started_s": None} | fields))


def since(started_s: float, changed_s: float, ready: str) -> dict[str, Any]:
    return {"started_s": started_s, "ready_changed_s": changed_s, "ready": ready}


READY, UNREADY, MISSING, IGNORED = "ready", "unready", "missing", "ignored"
ONE_POD = [
    ("memory: readiness is not asked", pod("a"), Sample(1, 0, 60), "memory", READY),
    ("a Pods metric: neither", pod("a"), Sample(1, 0, 60), "", READY),
    ("no Ready condition", pod("a", started_s=0.0), Sample(1, OLD, 0), "cpu", UNREADY),
    ("no start time", pod("a", ready="True"), Sample(1, 0, 60), "cpu", UNREADY),
    ("a whole window since", pod("a", **since(-60, -30, "True")), Sample(1, 0, 30), "cpu", READY),
    ("half a window", pod("a", **since(-60, -30, "True")), Sample(1, 0, 60), "cpu", UNREADY),
    ("unready in its start", pod("a", **since(-60, -60, "False")), Sample(1, 0, 0), "cpu", UNREADY),
    ("never was ready", pod("a", **since(-600, -594, "False")), Sample(1, OLD, 0), "cpu", UNREADY),
    ("old sample, later", pod("a", **since(-180, -180, "True")), Sample(1, -120, 60), "cpu", READY),
    ("was ready once", pod("a", **since(-600, -540, "False")), Sample(1, OLD, 0), "cpu", READY),
    (
        "just after the delay",
        pod("a", **since(-600, -590, "False")),
        Sample(1, OLD, 0),
        "cpu",
        READY,
    ),
    ("readiness unknown", pod("a", **since(-600, -594, "Unknown")), Sample(1, 0, 0), "cpu", READY),
    ("no metric", pod("a", started_s=-180.0), None, "cpu", MISSING),
    ("pending", pod("a", phase="Pending"), None, "cpu", UNREADY),
    ("pending, with a metric", pod("a", phase="Pending"), Sample(1), "", UNREADY),
    ("deleted", pod("a", phase="Pending", deleted=True), Sample(1), "cpu", IGNORED),
    ("failed", pod("a", phase="Failed"), Sample(1), "cpu", IGNORED),
    ("succeeded", pod("a", phase="Succeeded"), Sample(1), "memory", READY),
]


@pytest.mark.parametrize(
    ("of", "sample", "resource", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in ONE_POD]
)
def test_the_group_of_a_pod(of: Pod, sample: Sample | None, resource: str, wanted: str) -> None:
    samples = {} if sample is None else {"a": sample}
    found = group([of], samples, resource, HARNESS, 0.0)
    one = frozenset({"a"})
    assert found == Groups(
        int(wanted == READY),
        one if wanted == UNREADY else frozenset(),
        one if wanted == MISSING else frozenset(),
        one if wanted == IGNORED else frozenset(),
    )


def test_several_pods() -> None:
    pods = [
        pod("lucretius", started_s=0.0),
        pod("niccolo", **since(-180, -180, "True")),
        pod("epicurus", started_s=-180.0),
    ]
    samples = {"lucretius": Sample(1, OLD, 0), "niccolo": Sample(1, OLD, 0)}
    found = group(pods, samples, "cpu", HARNESS, 0.0)
    assert found == Groups(1, frozenset({"lucretius"}), frozenset({"epicurus"}), frozenset())
    assert group([], {}, "cpu", HARNESS, 0.0) == Groups(0, *[frozenset()] * 3)


def test_succeeded_pods_are_ignored_from_1_38_on() -> None:
    found = group([pod("a", phase="Succeeded")], {}, "cpu", Options.at("1.38"), 0.0)
    assert found.ignored == {"a"}


C1, C2 = Container("container1", {"cpu": 100}), Container("container2", {"cpu": 50})
BARE = Container("container1")
INIT, SIDECAR = Container("init", {"cpu": 20}), Container("sidecar", {"cpu": 50}, restartable=True)
LEVEL = {"cpu": 800}
REQUESTS: list[tuple[str, Pod, str, bool, int | str]] = [
    ("sum", Pod("p", containers=(C1, C2)), "", False, 150),
    ("no pod level set", Pod("p", containers=(C1, C2)), "", True, 150),
    ("pod level wins", Pod("p", containers=(C1, C2), requests=LEVEL), "", True, 800),
    ("gate closed", Pod("p", containers=(C1, C2), requests=LEVEL), "", False, 150),
    ("one lacks it", Pod("p", containers=(BARE, C2)), "", False, "container container1 of Pod p"),
    ("pod level instead", Pod("p", containers=(BARE, C2), requests=LEVEL), "", True, 800),
    ("one container", Pod("p", containers=(C1, C2)), "container1", False, 100),
    (
        "container, pod level",
        Pod("p", containers=(C1, C2), requests=LEVEL),
        "container1",
        True,
        100,
    ),
    ("sidecar", Pod("p", containers=(C1,), init_containers=(INIT, SIDECAR)), "", False, 150),
    (
        "a sidecar alone",
        Pod("p", containers=(C1,), init_containers=(SIDECAR,)),
        "sidecar",
        True,
        50,
    ),
    (
        "nobody of that name",
        Pod("p", containers=(C1,)),
        "x",
        True,
        "container x not found in Pod p",
    ),
    ("a failed pod too", Pod("p", phase="Failed", containers=(BARE,)), "", True, "missing request"),
    (
        "another resource at pod level",
        Pod("p", containers=(C1,), requests={"memory": 1}),
        "",
        True,
        100,
    ),
    (
        "none at any level",
        Pod("p", containers=(BARE,), requests={"memory": 1}),
        "",
        True,
        "missing pod-level request for cpu in Pod p",
    ),
    (
        "a large init container",
        Pod(
            "p",
            containers=(C1,),
            init_containers=(SIDECAR, Container("init", {"cpu": 400})),
            requests={"memory": 1},
        ),
        "",
        True,
        450,
    ),
]


@pytest.mark.parametrize(
    ("of", "container", "gate", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in REQUESTS]
)
def test_what_a_pod_requests(of: Pod, container: str, gate: bool, wanted: int | str) -> None:
    options = replace(HARNESS, pod_level_resources=gate)
    if isinstance(wanted, str):
        with pytest.raises(MetricError, match=wanted):
            requests([of], container, "cpu", options)
    else:
        assert requests([of], container, "cpu", options) == {"p": wanted}


def test_usage_of_pods_and_of_containers() -> None:
    usages = {
        "whole": Usage({"one": 1, "two": 2}, 5.0, 30.0),
        "half": Usage({"one": 1, "two": None}),
        "other": Usage({"one": 1}),
        "empty": Usage({}),
    }
    assert samples_of(usages, "", HARNESS).keys() == {"whole", "other"}
    assert samples_of(usages, "", HARNESS)["whole"] == Sample(3, 5.0, 30.0)
    assert samples_of(usages, "two", HARNESS) == {"whole": Sample(2, 5.0, 30.0)}
