"""What MLflow shall say of a study: a parent, and a child per point, also where the point failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from serving.values import Estimate
from workbench.track.origin import on_which
from workbench.track.record import (
    AUTOSCALERS,
    CAPACITY,
    COMPARISONS,
    LOADS,
    POINTS,
    TRAIL,
    VARIANTS,
    Record,
    cut,
    doubted,
    flat,
    numbers,
)
from workbench.track.records import of_measurement

if TYPE_CHECKING:
    from workbench.measure import Measurement
    from workbench.measure.capacity import Capacity
    from workbench.measure.compare import Comparison
    from workbench.measure.points import Failure
    from workbench.measure.study import StudyResult

_TAKEN = (VARIANTS, POINTS, AUTOSCALERS, LOADS, COMPARISONS, CAPACITY)


def experiment_of(study: str) -> str:
    """The experiment's name; a study that is called like one of the others stays apart from it."""
    name = f"{TRAIL}-{study}"
    return f"{TRAIL}-study-{study}" if name in _TAKEN else name


def of_study(result: StudyResult) -> Record:
    """The parent: the question and the whole declaration."""
    study = result.study
    question = cut(study.question)
    return Record(
        "study",
        study.name,
        params=flat(study.model_dump(mode="json", exclude={"name", "question"})),
        # MLflow shows a note on top of the run's page.
        tags={"question": question, "mlflow.note.content": question},
        texts={"study.json": study.model_dump_json(indent=2)},
        experiment=experiment_of(study.name),
        origin=on_which(result.measurements[0].environment) if result.measurements else {},
    )


def of_points(result: StudyResult, folder: Path) -> Iterator[Record]:
    """A child per point, named as its folder; of a point that failed, only the failure."""
    failed = {failure.name for failure in result.failures}
    for measurement in result.measurements:
        if measurement.name not in failed:
            yield of_point(measurement, folder / measurement.name, result)
    for failure in result.failures:
        yield of_failure(failure, result)


def of_point(measurement: Measurement, folder: Path, result: StudyResult) -> Record:
    """A point that was measured, with its files."""
    record = of_measurement(measurement, folder if folder.is_dir() else None)
    params = {"study": result.study.name, **record.params}
    return replace(record, params=params, experiment=experiment_of(result.study.name))


def of_failure(failure: Failure, result: StudyResult) -> Record:
    """A point that could not be measured: a failed run with the cause."""
    arrivals = failure.workload.arrivals.model_dump(mode="json")
    load = {"concurrency": "batch", "rate_rps": "rate_rps"}
    return Record(
        "measure",
        failure.name,
        params={
            "study": result.study.name,
            "variant": failure.variant.name,
            "mode": result.study.mode,
            **{load[name]: f"{level:g}" for name, level in arrivals.items() if name in load},
            **flat(failure.engine.kwargs(), "engine."),
        },
        tags={"cause": cut(failure.cause), "remedy": cut(failure.remedy)},
        experiment=experiment_of(result.study.name),
        status="FAILED",
    )


def of_load(measurement: Measurement, folder: Path | None) -> Record:
    """A single load that belongs to no study."""
    return replace(of_measurement(measurement, folder), experiment=LOADS)


def of_comparison(found: Comparison, name: str) -> Record:
    """The parent of a comparison's runs: the ratio of each metric with its interval."""
    ratios = {
        f"ratio/{row['metric']}": Estimate(
            value=row["ratio"], low=row["low"], high=row["high"], n=row["repeats"]
        )
        for row in found.rows.to_dict("records")
    }
    return Record(
        "compare",
        name,
        params={"a": found.a, "b": found.b},
        metrics={**numbers(ratios), "narrow_enough": float(found.narrow_enough)},
        tags=doubted(found.doubts),
        texts={"comparison.json": found.text()},
        experiment=COMPARISONS,
    )


def of_capacity(found: Capacity, name: str) -> Record:
    """The parent of a search's runs: the highest rate and its interval, where known."""
    bounds = {"capacity_low_rps": found.low_rps, "capacity_high_rps": found.high_rps}
    return Record(
        "capacity",
        name,
        params={"attainment": f"{found.attainment:g}", "confidence": f"{found.confidence:g}"},
        metrics={
            "capacity_rps": found.rate_rps,
            **{bound: rate_rps for bound, rate_rps in bounds.items() if isfinite(rate_rps)},
            "runs": float(len(found.runs)),
        },
        tags=doubted(found.doubts),
        texts={"capacity.json": found.text()},
        experiment=CAPACITY,
    )


def of_run(measurement: Measurement, folder: Path, parent: Record) -> Record:
    """One run of a comparison or a search."""
    return replace(of_measurement(measurement, folder), experiment=parent.experiment)
