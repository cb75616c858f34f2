"""What is searched: variants with their latency models, and typed ranges."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, model_validator

from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
)
from serving.plan import EngineArgs, Variant
from serving.values import Value
from simulations.latency import LatencyModel

_MARGIN = 0.1


class Candidate(Value):
    """A variant that may be served, and how fast it is."""

    variant: Variant
    latency: LatencyModel

    @model_validator(mode="after")
    def _belong_together(self) -> Candidate:
        if self.latency.variant != self.variant.name:
            raise ValueError(
                f"latency is of {self.latency.variant!r}, not of {self.variant.name!r}"
            )
        return self


class TargetRange(Value):
    """Where a metric may be held, searched on a logarithmic scale."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    of_max_num_seqs: bool = False
    """The range is in shares of the engine's max_num_seqs."""

    @model_validator(mode="after")
    def _ordered(self) -> TargetRange:
        if self.low > self.high:
            raise ValueError(f"low(={self.low}) must be <= high(={self.high})")
        return self


TARGETS: Mapping[str, TargetRange] = {
    REQUESTS_RUNNING: TargetRange(low=0.1, high=1.0, of_max_num_seqs=True),
    REQUESTS_WAITING: TargetRange(low=0.05, high=20),
    KV_CACHE_USAGE: TargetRange(low=0.01, high=0.9),
    GPU_UTILISATION: TargetRange(low=5, high=98),
    TTFT_MEAN: TargetRange(low=0.01, high=2),
}


class SearchSpace(Value):
    """The choices of the search. Where several metrics are named together, the HPA follows the
    one that asks for most replicas. None: taken from the workload's peak and the engine."""

    metrics: tuple[tuple[str, ...], ...] = (
        (REQUESTS_RUNNING,),
        (REQUESTS_WAITING,),
        (KV_CACHE_USAGE,),
        (GPU_UTILISATION,),
        (TTFT_MEAN,),
        (GPU_UTILISATION, TTFT_MEAN),
    )
    targets: dict[str, TargetRange] = Field(default_factory=lambda: dict(TARGETS))
    min_replicas: tuple[int, int] | None = None
    """None: 1 to the peak's need and a margin."""
    max_replicas: tuple[int, int] | None = None
    """None: the peak's need to twice that with its margin."""
    warm_spares: tuple[int, ...] = (0, 1, 2)
    scale_up_window_s: tuple[int, ...] = (0, 15, 30, 60)
    scale_up_pods: tuple[int, ...] = (1, 2, 4, 8)
    """Most pods added in 15 s."""
    scale_down_window_s: tuple[int, ...] = (0, 60, 120, 300, 600)
    scale_down_percent: tuple[int, ...] = (10, 25, 50, 100)
    """Largest share of the pods removed in a minute."""
    tolerance: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    max_num_seqs: tuple[int, ...] | None = None
    """Only those within the fitted range are used. None: the engine's own, a half and a quarter."""

    @model_validator(mode="after")
    def _complete(self) -> SearchSpace:
        for names in self.metrics:
            unknown = [name for name in names if name not in self.targets]
            if unknown or not names:
                raise ValueError(f"metrics(={names}) must have a range in targets each")
        for name, choices in self:
            if isinstance(choices, tuple) and not choices:
                raise ValueError(f"{name}(=()) must not be empty")
        for name in ("min_replicas", "max_replicas"):
            bounds = getattr(self, name)
            if bounds is not None and not 1 <= bounds[0] <= bounds[1]:
                raise ValueError(f"{name}(={bounds}) must be two numbers, 1 <= low <= high")
        return self

    def sized(self, peak_replicas: int) -> SearchSpace:
        """The same with the replica ranges of a peak, which perfectly spread requests would need.

        A fleet that is always there needs some more, and one that scales may overshoot: both are
        in the ranges.
        """
        always = peak_replicas + 2 * max(1, round(_MARGIN * peak_replicas))
        return self.model_copy(
            update={
                "min_replicas": self.min_replicas or (1, always),
                "max_replicas": self.max_replicas or (peak_replicas, 2 * always),
            }
        )

    def seqs_choices(self, engine: EngineArgs, most: int) -> tuple[int, ...]:
        """Values of max_num_seqs that may be simulated, the largest first."""
        largest = min(engine.max_num_seqs, most)
        choices = self.max_num_seqs or (largest, largest // 2, largest // 4)
        fit = {n for n in choices if 1 <= n <= min(most, engine.max_num_batched_tokens)}
        return tuple(sorted(fit, reverse=True))
