"""Runs in MLflow: add what lies on disk and is not there yet; choose and order what is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import pandas as pd

from serving.errors import InputError
from workbench.measure import Measurement
from workbench.measure.points import Failure
from workbench.measure.study import Study, StudyResult
from workbench.pipeline import Pipeline
from workbench.progress import OnProgress
from workbench.results import Results
from workbench.settings import Settings
from workbench.track import UNTRACKED, PipelineRun, Tracker

T = TypeVar("T")

_STAGES = ("compress", "sweep", "serve", "fit", "tune", "export", "verify", "report")
_SWEEPS = ("sweep", "serve")
_MEASURED = (
    *("name", "experiment", "variant", "load", "valid", "output_tokens_per_s"),
    *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "when"),
)
_FLEET = (
    *("name", "variant", "gpu_hours", "cost_usd", "ttft_p99_s", "slo_attainment", "keeps_slo"),
    "when",
)
_COLUMNS = {
    "pipeline": ("name", "status", "when"),
    "study": ("name", "experiment", "status", "points", "failures", "question", "when"),
    "compress": ("name", "method", "size_mib", "perplexity", "task_accuracy", "when"),
    "measure": _MEASURED,
    "sweep": ("name", "variant", "mode", "method", "size_mib", "task_accuracy", "when"),
    "fit": (
        *("name", "n_steps", "cold_start_s"),
        *("heldout_error.step_median", "heldout_error.total_time", "when"),
    ),
    "candidate": _FLEET,
    "tune": _FLEET,
    "compare": ("name", "a", "b", "ratio/output_tokens_per_s", "ratio/tpot_p50_s", "when"),
    "capacity": (
        *("name", "capacity_rps", "capacity_low_rps", "capacity_high_rps", "attainment", "when"),
    ),
    "export": ("name", "variant", "files", "bytes", "when"),
    "verify": ("name", "holds", "when"),
}
_ANY = ("name", "stage", *_MEASURED[1:])
_STUDY, _POINT, _PAGE, _LOADS = "study.json", "*/measurement.json", "report.html", "loads"
_COMPARISON, _CAPACITY = "comparisons/*/comparison.json", "capacity/*/capacity.json"


@dataclass(frozen=True)
class Logged:
    """How many runs were added, and how many were there."""

    added: int
    known: int
    unreadable: tuple[str, ...]
    """What lies on disk and cannot be read, one line each."""


def log_everything(workdir: Path, on_progress: OnProgress, *, store: Path | None = None) -> Logged:
    """Log every result under a directory to MLflow; what is there is not added twice.

    Stages' results, points of stages that were cut off, studies, comparisons, capacities and single
    loads. A result that cannot be read is named and left out.

    Args:    store: the data directory whose MLflow takes them; None is `workdir` itself. With another
                 one, measurements that lie anywhere else in `workdir` are single loads, named by
                 their path.
    Raises:  InputError: there is no such directory, or nothing in it.
             what the store raises (see `workbench.track.reached`).
    """
    if not workdir.is_dir():
        raise InputError(f"folder(={str(workdir)!r}) is not there", remedy="Check the path.")
    studies = studies_in(workdir)
    stages = [name for name in _STAGES if _left_something(workdir, name)]
    elsewhere = _elsewhere(workdir, [*studies, *(workdir / name for name in stages)])
    loads = elsewhere if store else list((workdir / _LOADS).glob(_POINT))
    groups = [path for pattern in (_COMPARISON, _CAPACITY) for path in workdir.glob(pattern)]
    if not (stages or studies or loads or groups):
        raise InputError(
            f"folder(={str(workdir)!r}) holds no results",
            remedy="Give the directory of a run, or make one with `workbench demo`.",
        )
    share = 0.0
    tracker = Tracker(store or workdir, on_run=lambda name: on_progress(name, share))
    unreadable = _log_pipeline(tracker, workdir, stages)
    for number, folder in enumerate(studies, 1):
        share = number / (len(studies) + 2)
        unreadable += _log_study(tracker, folder)
    share = (len(studies) + 1) / (len(studies) + 2)
    unreadable += _log_loads(tracker, loads, workdir if store else None)
    for pattern, add in ((_COMPARISON, tracker.comparison), (_CAPACITY, tracker.capacity)):
        unreadable += _readable((path.parent for path in workdir.glob(pattern)), add)[1]
    if store is None:
        (workdir / UNTRACKED).unlink(missing_ok=True)
    return Logged(tracker.added, tracker.known, tuple(unreadable))


def studies_in(workdir: Path) -> list[Path]:
    """Folders of studies: the directory itself, those in it, and those one deeper."""
    found = {path.parent for depth in ("", "*/", "*/*/") for path in workdir.glob(depth + _STUDY)}
    return sorted(found)


def _log_pipeline(tracker: Tracker, workdir: Path, stages: Sequence[str]) -> list[str]:
    """The results of the stages, under the settings that the directory was last used with."""
    if not stages or not (workdir / "settings.json").exists():
        return []
    settings, unreadable = _readable([workdir / "settings.json"], Settings.read)
    for chosen in settings:
        results = Results(Pipeline(workdir, chosen, ()))
        # They may have changed since a stage ran: its results are then under another parent.
        with tracker.pipeline_run("pipeline", chosen, anywhere=True) as run:
            for stage in stages:
                unreadable += _log_stage(results, run, stage)
    return unreadable


def _left_something(workdir: Path, stage: str) -> bool:
    return (workdir / _PAGE).exists() if stage == "report" else (workdir / stage).is_dir()


def _log_stage(results: Results, run: PipelineRun, stage: str) -> list[str]:
    folder = results.pipeline.folder(stage)
    damaged = []
    if stage == "report" or (folder / "done.json").exists():
        try:
            results.log(run, stage)
            return []
        except InputError as error:
            damaged.append(str(error))
    if stage not in _SWEEPS:
        return damaged
    # Cut off, or damaged: what was measured is a result all the same.
    points, unreadable = _readable(folder.glob(_POINT), _point)
    for point in points:
        run.measurement(point, folder / point.name)
    return unreadable or damaged


def _log_study(tracker: Tracker, folder: Path) -> list[str]:
    studies, unreadable = _readable([folder / _STUDY], Study.read)
    points, bad_points = _readable(folder.glob(_POINT), _point)
    failures, bad_failures = _readable(folder.glob("*/failed.json"), Failure.read)
    for study in studies:
        figure = next(iter(sorted(folder.glob("*.html"))), None)
        tracker.study(StudyResult(study, points, failures), folder, figure)
    return [*unreadable, *bad_points, *bad_failures]


def _elsewhere(folder: Path, known: Sequence[Path]) -> list[Path]:
    """Measurements that belong to no study, stage, comparison or capacity."""
    inside = {*known, *(folder / name for name in ("comparisons", "capacity", "mlartifacts"))}
    return [p for p in folder.rglob("measurement.json") if not inside.intersection(p.parents)]


def _log_loads(tracker: Tracker, heads: Iterable[Path], named_from: Path | None) -> list[str]:
    unreadable = []
    for head in sorted(heads):
        points, bad = _readable([head], _point)
        unreadable += bad
        for point in points:
            name = head.parent.relative_to(named_from).as_posix() if named_from else point.name
            tracker.load(point.renamed(name), head.parent)
    return unreadable


def _point(head: Path) -> Measurement:
    return Measurement.read(head.parent)


def _readable(paths: Iterable[Path], read: Callable[[Path], T]) -> tuple[list[T], list[str]]:
    """What can be read, and what is wrong with the rest."""
    values, unreadable = [], []
    for path in sorted(paths):
        try:
            values.append(read(path))
        except InputError as error:
            unreadable.append(str(error))
    return values, unreadable


def choose(
    found: pd.DataFrame,
    *,
    stage: str | None = None,
    columns: Sequence[str] = (),
    sort: str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The rows and columns of a table of runs that are shown.

    Numbers that came as text are numbers again. Default columns that say nothing are left out.

    Args:    sort: a column, behind `-` from the largest down; what has no value comes last.
             limit: at most so many rows; None is all.
    Raises:  InputError: a column that no run has.
    """
    if found.empty:
        return found
    if sort is not None:
        name = _column(found, "--sort", sort.removeprefix("-"))
        order = _values(found[name])
        down = sort.startswith("-")
        found = found.loc[order.sort_values(ascending=not down, kind="stable").index]
    found = found.head(limit) if limit is not None else found
    if columns:
        names = [_column(found, "--columns", name) for name in columns]
    else:
        default = _COLUMNS.get(stage or "", _ANY)
        names = [name for name in default if name in found and _says_something(found[name])]
        if "experiment" in names and found["experiment"].nunique() == 1:
            names.remove("experiment")
    shown = found[names].apply(_values)
    return shown.reset_index(drop=True)


def _column(found: pd.DataFrame, option: str, name: str) -> str:
    if name in found:
        return name
    near = get_close_matches(name, map(str, found.columns), n=3)
    raise InputError(
        f"{option}(={name!r}) is no column of these runs",
        remedy=f"Did you mean {', '.join(near)}?" if near else "--json shows all columns.",
    )


def _values(column: pd.Series) -> pd.Series:
    """MLflow keeps parameters and tags as text."""
    try:
        return pd.to_numeric(column)
    except (TypeError, ValueError):
        return column


def _says_something(column: pd.Series) -> bool:
    return bool((column.notna() & (column.astype(str) != "")).any())
