"""Verify: start the exported configuration on real vLLM, replay load, compare with the prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from serving.errors import InputError, MeasurementError
from simulations.result import Prediction
from workbench.export import check
from workbench.measure import Engine, Measurement, measure

OnProgress = Callable[[str, float], None]
_REPLAY = "replay"


@dataclass(frozen=True)
class Verification:
    """Whether the prediction was true.

    Attributes:
        rows: metric, predicted, low, high, measured, relative_error (measured over predicted, less one),
            tolerance, holds; one row per metric.
        holds: whether all rows do.
        measurement: the replay, where it is at hand.
    """

    rows: pd.DataFrame
    holds: bool
    measurement: Measurement | None = None

    def write(self, folder: Path) -> Path:
        """Write folder/verification.parquet (and .json, for other programs)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.rows.to_json(folder / "verification.json", orient="records", indent=2)
        path = folder / "verification.parquet"
        self.rows.to_parquet(path, index=False)
        return path

    @classmethod
    def read(cls, folder: Path) -> Verification:
        """Read what `write` wrote, and the replay beside it.

        Raises:  InputError: nothing was verified there.
        """
        path = folder / "verification.parquet"
        if not path.exists():
            raise InputError(f"{folder} holds no verification", remedy="Run `workbench verify`.")
        rows = pd.read_parquet(path)
        replay = folder / _REPLAY
        found = Measurement.read(replay) if replay.exists() else None
        return cls(rows=rows, holds=bool(rows["holds"].all()), measurement=found)

    def _repr_html_(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        return f"<b>The prediction {verdict}</b>{self.rows.to_html(index=False)}"


def verify(
    bundle: Path,
    *,
    folder: Path,
    engine: Engine | None = None,
    attempts: int = 3,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Replay the prediction's load on one replica of the bundle.

    Args:    engine: a running engine of the bundle's plan; None starts real vLLM.
             attempts: a run that must not be trusted (a machine that is busy with something else) is
                 done again, with other draws of the same load.
    Returns: Verification, whether it holds or not.
    Raises:  BundleError: a bundle that is incomplete or was changed.
             MeasurementError: a run that must not be trusted: neither kept nor broken.
    """
    plan = check(bundle)
    prediction = Prediction.read(bundle / "prediction.json")
    local = bundle / "model"
    variant = plan.variant
    if local.is_dir():
        variant = variant.model_copy(update={"model": str(local.resolve())})
    for attempt in range(attempts):
        measured = measure(
            variant,
            prediction.workload.at(seed=prediction.workload.seed + attempt),
            engine_args=plan.engine,
            folder=folder,
            engine=engine,
            name=_REPLAY,
            on_progress=on_progress,
        )
        if not measured.invalid:
            break
    else:
        raise MeasurementError(
            f"the replay cannot be trusted: {measured.invalid[0]}",
            remedy="Run `workbench verify` again on a quiet machine.",
        )
    rows = _compare(prediction, measured)
    return Verification(rows=rows, holds=bool(rows["holds"].all()), measurement=measured)


def _compare(prediction: Prediction, measured: Measurement) -> pd.DataFrame:
    found = measured.summary()
    rows = []
    for metric, estimate in prediction.metrics.items():
        tail = "_p99_" in metric
        tolerance = prediction.tolerance_p99 if tail else prediction.tolerance_p50
        error = found[metric] / estimate.value - 1
        rows.append(
            {
                "metric": metric,
                "predicted": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "measured": found[metric],
                "relative_error": error,
                "tolerance": tolerance,
                "holds": abs(error) <= tolerance,
            }
        )
    return pd.DataFrame(rows)
