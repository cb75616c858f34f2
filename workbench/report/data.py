"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serving.errors import InputError
from serving.plan import Slo, Variant
from simulations.latency import LatencyModel

if TYPE_CHECKING:
    from workbench.measure import Measurement
    from workbench.tune import Tuning
    from workbench.verify import Verification


@dataclass(frozen=True)
class ReportData:
    """Results of the stages; what has not been run yet is left out of the page.

    Attributes:
        title: heading of the page.
        variants: the parent and what was made from it.
        measurements: offline and server runs, repeats included.
        latency_models: one per variant that was fitted.
        tuning: winner, trials and baselines.
        verification: predicted against measured.
        slo: the promise; None takes the winner's.
        settings: what was chosen, shown as a table (seeds among it).
        command: how to make the same page again.
    """

    title: str
    variants: tuple[Variant, ...]
    measurements: tuple[Measurement, ...]
    latency_models: tuple[LatencyModel, ...] = ()
    tuning: Tuning | None = None
    verification: Verification | None = None
    slo: Slo | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = "workbench demo --workdir runs"

    def __post_init__(self) -> None:
        if not self.variants:
            raise InputError("variants(=()) is empty", remedy="Report on at least one variant.")
        names = {variant.name for variant in self.variants}
        strangers = sorted({m.variant.name for m in self.measurements} - names)
        if strangers:
            raise InputError(
                f"measurements are of variants(={strangers}) that are not in the report",
                remedy="Add them to `variants`.",
            )

    @property
    def trusted(self) -> tuple[Measurement, ...]:
        """Measurements that passed the validity gate: only these are drawn."""
        return tuple(m for m in self.measurements if not m.invalid)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why measurements that were used by force cannot be trusted."""
        found = [doubt for model in self.latency_models for doubt in model.doubts]
        return tuple(dict.fromkeys([*found, *(self.tuning.doubts if self.tuning else ())]))

    @property
    def limits(self) -> Slo | None:
        """The promise that everything is held against."""
        return self.slo or (self.tuning.winner.slo if self.tuning else None)
