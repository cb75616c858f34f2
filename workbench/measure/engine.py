"""The one seam between the measure stage and what is measured.

An `Engine` is started by `with` and runs whole loads, not single requests: an open loop belongs to
the engine's own clock. Offline vLLM, a vLLM server and the fake of the fast tests stand behind it,
and one contract suite runs on all three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, Self

import pandas as pd
from pydantic import Field

from serving.values import Value
from workbench.measure.coldstart import ColdStartParts
from workbench.measure.outcome import Outcome, Request

OnProgress = Callable[[str, float], None]

STEP_COLUMNS = (
    "t_s",
    "step_s",
    "gap_s",
    "prefill_requests",
    "prefill_tokens",
    "decode_seqs",
    "kv_tokens",
    "running",
    "waiting",
    "preempted",
)


class ReplicaInfo(Value):
    """What an engine says of itself once it runs."""

    engine_version: str
    kv_blocks: int = Field(ge=0)
    block_size_tokens: int = Field(gt=0)
    start_s: float = Field(ge=0)
    """Process (offline: engine) start to first answer; 0 where somebody else started it."""
    async_scheduling: bool = False
    cold_start: ColdStartParts | None = None
    """What `start_s` was spent on, where the start was ours to watch."""

    @property
    def kv_capacity_tokens(self) -> int:
        return self.kv_blocks * self.block_size_tokens


@dataclass(frozen=True)
class Run:
    """Every request and every engine step of one load.

    Attributes:
        requests: one row per request, see `Measurement`.
        steps: one row per engine step; empty where the engine was started by somebody else.
        doubts: what the engine itself knows against this run.
        start_s: of the run, on the system's monotonic clock.
        cached_tokens: prompt tokens that came from the prefix cache; None where nobody counted.
        client: how the load client fared (see `load.Load`); empty where there is none.
    """

    requests: pd.DataFrame
    steps: pd.DataFrame
    doubts: tuple[str, ...] = ()
    start_s: float = 0.0
    cached_tokens: int | None = None
    client: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Something that answers requests. `__exit__` always leaves no process behind."""

    @property
    def replica(self) -> ReplicaInfo: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        """Send requests and wait for all of them.

        Open loop: each is sent when scheduled, whatever came back. With `concurrency` a closed
        loop: so many at a time in the given order, the scheduled times are those of sending.
        A request that the engine refuses is a row with an error, never an exception. The prefix
        cache is empty when the run begins, where the engine can be told so.
        """
        ...

    def ended(self) -> str | None:
        """Why it no longer runs, in one line; None while it does."""
        ...


def requests_frame(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per outcome; all of them counted."""
    columns: dict[str, list[Any]] = {
        name: [getattr(outcome, name) for outcome in outcomes]
        for name in Outcome.__dataclass_fields__
    }
    table = pd.DataFrame({name: values for name, values in columns.items() if name != "error"})
    table["error"] = pd.Series(columns["error"], dtype=object)
    table["counted"] = True
    order = [
        *("request_id", "scheduled_s", "sent_s", "first_token_s", "end_s", "prompt_tokens"),
        *("output_tokens", "asked_output_tokens", "counted", "error", "itl_s"),
    ]
    return table[order]


@dataclass
class Step:
    """One engine step, times on the clock of the run."""

    t_s: float
    step_s: float
    gap_s: float
    prefill_requests: int
    prefill_tokens: int
    decode_seqs: int
    kv_tokens: int
    running: int
    waiting: int
    preempted: int = 0


def steps_frame(steps: Sequence[Step]) -> pd.DataFrame:
    """One row per step, typed even when there is none."""
    table = pd.DataFrame([asdict(step) for step in steps], columns=list(STEP_COLUMNS))
    kinds = {name: "float64" if name.endswith("_s") else "int64" for name in STEP_COLUMNS}
    return table.astype(kinds)
