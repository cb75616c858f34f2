"""An open parent run of the pipeline: what a stage found, one method each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serving.plan import Plan, Variant
from simulations.latency import LatencyModel
from workbench.track import records
from workbench.track.record import Record

if TYPE_CHECKING:
    from simulations.traffic import Workload
    from workbench.measure import Measurement
    from workbench.track.store import Tracker
    from workbench.tune import Tuning
    from workbench.verify import Verification


class PipelineRun:
    """An open parent run: each method logs one result as a child and returns its run id."""

    def __init__(self, tracker: Tracker, run_id: str, *, anywhere: bool = False) -> None:
        self.run_id = run_id
        self._tracker = tracker
        self._anywhere = anywhere

    def variant(self, variant: Variant) -> str:
        """Size and quality of a variant."""
        return self._log(records.of_variant(variant))

    def measurement(self, measurement: Measurement, folder: Path | None = None) -> str:
        """One measurement, with what `Measurement.write` wrote to `folder`."""
        return self._log(records.of_measurement(measurement, folder))

    def sweeps(
        self, measurements: Sequence[Measurement], usd_per_hour: float | None = None
    ) -> list[str]:
        """To compare: a run per variant and mode, curves over its loads; and one per variant and load.

        Args:    usd_per_hour: of one GPU; without it the loads have no cost.
        """
        found = [*records.of_sweeps(measurements), *records.of_points(measurements, usd_per_hour)]
        return [self._log(record) for record in found]

    def fit(self, model: LatencyModel) -> str:
        """Coefficients and held-out errors of a latency model."""
        return self._log(records.of_latency_model(model))

    def tune(self, tuning: Tuning) -> str:
        """Baselines and winner, to compare, and the search, whose run id is returned."""
        return [self._log(record) for record in records.of_tuning(tuning)][-1]

    def export(self, bundle: Path, plan: Plan, doubts: Sequence[str] = ()) -> str:
        """The exported bundle; files above 64 MiB are listed, not copied."""
        return self._log(records.of_bundle(bundle, plan, doubts))

    def register(self, run_id: str, plan: Plan, latency: LatencyModel, workload: Workload) -> str:
        """The exported plan as a registered model that predicts latency and cost for a load.

        Args:    run_id: of the export.
                 workload: its lengths.
        Returns: the version.
        """
        return self._tracker.register(run_id, plan, latency, workload)

    def verify(self, verification: Verification) -> str:
        """Predicted against measured."""
        return self._log(records.of_verification(verification))

    def artifact(self, path: Path) -> None:
        """Attach a file to the parent run, for example the report."""
        self._tracker.attach(self.run_id, path)

    def metrics(self, metrics: Mapping[str, float]) -> None:
        """Headline numbers of the whole run, to compare pipeline runs by."""
        self._tracker.add(self.run_id, metrics)

    def _log(self, record: Record) -> str:
        return self._tracker.log(record, self.run_id, anywhere=self._anywhere)
