"""Which loads a prediction is tried on: shares of what a replica can take, and a replayed trace."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from serving.errors import InputError
from serving.plan import EngineArgs
from serving.values import Value
from simulations.bounds import saturation_rps
from simulations.latency import LatencyModel
from simulations.traffic import Lengths, Poisson, Replay, Workload

REPLAY = "replay"
_SLACK = 1e-6


class FidelityStudy(Value):
    """Loads of lengths that the model was not fitted to, each measured several times."""

    prompt_tokens: Lengths
    output_tokens: Lengths
    shares: tuple[float, ...] = (0.2, 0.5, 0.8, 0.95, 1.1)
    """Of the capacity: Poisson loads; none where a trace is all that is played."""
    capacity_rps: float | None = Field(None, gt=0)
    """As measured; None takes the twin's (`saturation_rps`)."""
    replay: Replay | None = None
    """An excerpt of a trace, in its own lengths."""
    replay_share: float | None = Field(0.6, gt=0)
    """The trace is played at the speed at which it offers this share of the twin's capacity for its
    lengths, for the duration of a load; None plays the window as it is."""
    duration_s: float = Field(30.0, gt=0)
    least_requests: int = Field(100, ge=1)
    """A load at a low share lasts longer than `duration_s`, until so many are counted in the mean."""
    warmup_s: float = Field(3.0, ge=0)
    repeats: int = Field(3, ge=1)
    """Of each load, with the same arrivals, lengths and prompts."""
    target_p50: float = Field(0.05, gt=0)
    """Largest relative error that counts as right, of medians and throughput."""
    target_tail: float = Field(0.10, gt=0)
    """Of p95 and p99."""
    noise_floors: float = Field(2.0, ge=0)
    """So many noise floors are right as well, where that is more."""
    seed: int = Field(0, ge=0)

    @field_validator("shares")
    @classmethod
    def _positive(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if min(shares, default=1.0) <= 0 or len(set(shares)) < len(shares):
            raise ValueError(f"shares(={shares}) must be > 0, each once")
        return shares

    @model_validator(mode="after")
    def _has_loads(self) -> Self:
        if not self.shares and self.replay is None:
            raise ValueError("shares(=()) must be one or more where no trace is played")
        return self

    def target(self, metric: str) -> float:
        """The relative error that counts as right."""
        return self.target_tail if "_p95_" in metric or "_p99_" in metric else self.target_p50

    @property
    def settled(self) -> bool:
        """Whether the loads can be made up before there is a model."""
        return self.capacity_rps is not None and (self.replay is None or self.replay_share is None)

    def workloads(self, capacity_of: Callable[[Workload], float]) -> tuple[float, list[Workload]]:
        """The capacity, and the loads: by share, then the trace.

        Args:    capacity_of: requests a second of a workload's lengths.
        """
        capacity_rps = self.capacity_rps or round(capacity_of(self._at(1.0, 0)), 3)
        loads = [
            self._at(round(share * capacity_rps, 3), number)
            for number, share in enumerate(self.shares)
        ]
        if self.replay is not None:
            loads.append(self._played(self.replay, capacity_of))
        return capacity_rps, loads

    def _at(self, rate_rps: float, number: int) -> Workload:
        return Workload(
            arrivals=Poisson(rate_rps=rate_rps),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            duration_s=round(
                max(self.duration_s, self.warmup_s + self.least_requests / rate_rps), 3
            ),
            warmup_s=self.warmup_s,
            seed=self.seed + number,
        )

    def _played(self, replay: Replay, capacity_of: Callable[[Workload], float]) -> Workload:
        chosen = {"warmup_s": self.warmup_s, "seed": self.seed}
        if self.replay_share is None:
            return Workload.of_trace(replay, **chosen)
        begins = replay.model_copy(update={"speedup": 1.0})
        arrived_at_s = begins.trace(self.seed).arrived_at_s
        rate_rps = self.replay_share * capacity_of(Workload.of_trace(begins, seed=self.seed))
        wanted = max(2, ceil(rate_rps * self.duration_s))
        if wanted > len(arrived_at_s):
            raise InputError(
                f"the trace has {len(arrived_at_s)} requests from start_s(={replay.start_s:g}) on,"
                f" {self.replay_share:.0%} of the capacity are {wanted} in {self.duration_s:g} s",
                remedy="Start earlier, shorten duration_s, or take replay_share=None.",
            )
        lasts_s = float(arrived_at_s[wanted - 1] - arrived_at_s[0]) + _SLACK
        excerpt = {"speedup": lasts_s / self.duration_s, "length_s": arrived_at_s[0] + lasts_s}
        return Workload.of_trace(replay.model_copy(update=excerpt), **chosen)


class Loads(Value):
    """A study with its loads made up: the same for every model that is tried on them."""

    study: FidelityStudy
    capacity_rps: float
    capacity_source: str
    workloads: dict[str, Workload]

    @classmethod
    def of(
        cls, study: FidelityStudy, latency: LatencyModel | None, engine: EngineArgs, folder: Path
    ) -> Self:
        """Those that lie in the folder for this study, or new ones, which are then written there.

        Args:    latency: None only where the study is `settled`.
        Raises:  InputError: a trace that is too short.
        """
        path = folder / "loads.json"
        if path.exists():
            known = cls.read(path)
            if known.study == study:
                return known

        def capacity_of(workload: Workload) -> float:
            assert latency is not None
            return saturation_rps(workload, latency, engine)

        capacity_rps, workloads = study.workloads(capacity_of)
        names = [*(f"{100 * share:g}%" for share in study.shares), *([REPLAY] * bool(study.replay))]
        found = cls(
            study=study,
            capacity_rps=capacity_rps,
            capacity_source="given"
            if study.capacity_rps
            else "of the twin, while it always has more waiting than it can run",
            workloads=dict(zip(names, workloads, strict=True)),
        )
        found.write(path)
        return found
