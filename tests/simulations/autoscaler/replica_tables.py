"""Upstream's tables for one metric: the figures of replica_calculator_test.go, v1.38-dev (2026-09).

They stand in replica_tables.txt. Levels and requests are milli: of each container for a resource
(container1/container2), of the pod, the object or the series otherwise. `1000*3` is three pods alike,
`max` and `half` are of 64 bits, `max32` of 32. One letter a pod: ready T or F; start n (now) or 3
(minutes ago); phase R, P, F or S; deleted x. `-` is nothing special.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from simulations.autoscaler import Container, Pod
from simulations.autoscaler.values import Phase

LONG_AGO_S = -1e10
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1
_WORDS = {"max": MAX_INT64, "half": MAX_INT64 // 2 + 1, "max32": MAX_INT32}
_PHASES: dict[str, Phase] = {"R": "Running", "P": "Pending", "F": "Failed", "S": "Succeeded"}
_STARTS_S = {"n": 0.0, "3": -180.0}


@dataclass(frozen=True)
class Case:
    """A row: the pods, what is reported of them, and what is expected."""

    name: str
    now: int
    """spec.replicas or status.replicas."""
    levels: tuple[tuple[int, ...], ...]
    """By pod, then by container."""
    target: int
    replicas: int = 0
    usage: int = 0
    percent: int = 0
    requests: tuple[int, ...] = ()
    container: str = ""
    ready: str = ""
    start: str = ""
    phase: str = ""
    deleted: str = ""
    tolerance: tuple[float, float] = (0.1, 0.1)
    """(down, up)."""

    def pods(self) -> list[Pod]:
        return [self._pod(i) for i in range(max(self.now, len(self.phase)))]

    def _pod(self, i: int) -> Pod:
        asked = {"cpu": self.requests[i]} if i < len(self.requests) else {}
        return Pod(
            name=pod_name(i),
            phase=_PHASES[self.phase[i]] if self.phase else "Running",
            ready="False" if self.ready and self.ready[i] == "F" else "True",
            deleted=bool(self.deleted) and self.deleted[i] == "x",
            started_s=_STARTS_S[self.start[i]] if self.start else LONG_AGO_S,
            ready_changed_s=LONG_AGO_S,
            containers=(Container("container1", asked), Container("container2", asked)),
        )

    @property
    def totals(self) -> list[int]:
        """Levels that are not of containers."""
        return [level for (level,) in self.levels]


def pod_name(i: int) -> str:
    return f"test-pod-{i}"


def _number(text: str) -> int:
    return _WORDS[text] if text in _WORDS else int(text)


def _pods(text: str) -> tuple[int, ...]:
    if "*" in text:
        level, _, count = text.partition("*")
        return (int(level),) * int(count)
    return tuple(int(level) for level in text.split())


def _case(row: dict[str, str]) -> Case:
    given = {key: text for key, text in row.items() if text != "-"}
    numbers = ("now", "target", "replicas", "usage", "percent")
    texts = ("name", "container", "ready", "start", "phase", "deleted")
    tolerances = tuple(float(part) for part in given.get("tolerance", "0.1 0.1").split())
    return Case(
        **{key: given[key] for key in texts if key in given},
        **{key: _number(given[key]) for key in numbers if key in given},
        levels=tuple(tuple(map(_number, pod.split("/"))) for pod in given["levels"].split()),
        requests=_pods(given.get("requests", "")),
        tolerance=(tolerances[0], tolerances[1]),
    )


def table(title: str) -> Iterator[Case]:
    """The cases of one table."""
    text = Path(__file__).with_suffix(".txt").read_text()
    (found,) = [part for part in text.split("\n\n") if part.startswith(f"[{title}]\n")]
    header, *rows = found.strip().split("\n")[1:]
    keys = [key.strip() for key in header.split("|")]
    for row in rows:
        yield _case(dict(zip(keys, (cell.strip() for cell in row.split("|")), strict=True)))
