"""A record: what one MLflow run will hold, without MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from serving.values import Estimate

if TYPE_CHECKING:
    from workbench.track.traces import Traced

TRAIL = "workbench"
"""The experiment of pipeline runs and, under each, its stage results."""
VARIANTS = "workbench-variants"
"""Flat runs to compare: one per variant and kind of load, curves over batch size or rate."""
POINTS = "workbench-points"
"""Flat runs for parallel coordinates: one per variant and load, its latency and its cost."""
AUTOSCALERS = "workbench-autoscalers"
"""Flat runs to compare: the baselines and the winner."""
LOADS = "workbench-loads"
"""Flat runs: single loads that belong to no pipeline and no study."""
COMPARISONS = "workbench-comparisons"
"""A parent per paired comparison, a child per run."""
CAPACITY = "workbench-capacity"
"""A parent per search for the highest rate, a child per run."""
FLAT = frozenset({VARIANTS, POINTS, AUTOSCALERS, LOADS})
"""Experiments whose runs have no parent in MLflow: its chart view hides nested runs."""

Status = Literal["FINISHED", "FAILED"]

_INTERVAL = "interval/"
_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Record:
    """What one run will hold. `curves` are (metric, step, value); texts become artifacts."""

    stage: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[tuple[str, int, float]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    experiment: str = TRAIL
    # What follows is not part of the identity.
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Artifact folder -> what is copied into it."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """Tags that say on what it was made; those of this machine where nothing is known."""
    span_ms: tuple[int, int] | None = None
    """Begin and end on the wall clock, milliseconds since 1970; None: when it is logged."""
    system: Sequence[tuple[str, int, float]] = ()
    """Samples of the device and the host: (metric, wall clock in milliseconds, value)."""
    traces: Sequence[Traced] = ()
    """Requests that become MLflow traces."""
    status: Status = "FINISHED"

    def key(self) -> str:
        """A digest of the content: two records with the same key say the same."""
        identity = [self.experiment, self.stage, self.name, self.params, self.metrics, self.tags]
        content = json.dumps([*identity, self.curves, self.texts], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def cut(text: str) -> str:
    """As much of a text as a tag or parameter should hold."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def doubted(doubts: Sequence[str]) -> dict[str, str]:
    """The tag of a result that rests on measurements that cannot be trusted."""
    return {"doubts": cut("; ".join(doubts))} if doubts else {}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names, each value as text."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            texts[f"{prefix}{name}"] = cut(text)
    return texts


def numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """What is a number; an estimate also as its interval, in a section of charts of its own."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            found[prefix + name] = value.value
            found[f"{_INTERVAL}{prefix}{name}_low"] = value.low
            found[f"{_INTERVAL}{prefix}{name}_high"] = value.high
        elif isinstance(value, int | float | np.integer | np.floating | np.bool_):
            found[prefix + name] = float(value)
    return found


def without_intervals(found: Mapping[str, float]) -> dict[str, float]:
    """Without the intervals, which MLflow would draw as charts of their own and show first."""
    return {name: value for name, value in found.items() if not name.startswith(_INTERVAL)}
