"""The runs that a prediction is tried on, and those that a model is fitted to, each kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TypeVar

from serving.errors import MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.latency import LatencyModel
from simulations.limits import check_range
from simulations.traffic import ClosedLoop
from workbench.fidelity.calibrate import calibration_points, model_of
from workbench.fidelity.loads import FidelityStudy, Loads
from workbench.measure.capacity import lazily
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.measurement import Measurement
from workbench.measure.points import Point, StartEngine, once, part, start_server
from workbench.measure.prompts import requests_for
from workbench.measure.validity import NOT_STEADY

T = TypeVar("T")
_BELONGS = (NOT_STEADY, "too short", "preemptions")
"""Marks of what a server near its capacity does, and the twin with it."""


@dataclass(frozen=True)
class Runs:
    """What was measured for a study.

    Attributes:
        loads: what was sent.
        of_loads: the runs of the loads, trusted or not.
        fitted_to: what a model was, or is to be, fitted to; empty where one was given.
        latency: the model; None where it is still to be fitted.
        doubts: what speaks against trying it on these loads.
    """

    loads: Loads
    of_loads: list[Measurement]
    fitted_to: list[Measurement]
    latency: LatencyModel | None
    doubts: list[str]


def measure_loads(
    study: FidelityStudy,
    variant: Variant,
    latency: LatencyModel | None = None,
    *,
    engine_args: EngineArgs,
    folder: Path,
    start: StartEngine = start_server,
    force: bool = False,
    only_kept: bool = False,
    time_limit_s: float | None = None,
    on_progress: OnProgress | None = None,
) -> Runs:
    """Measure what is not there yet: the loads, and what a model is fitted to where none is given.

    Args:    only_kept: take what lies there, trusted or not, and measure nothing.
             time_limit_s: no run is begun that would not end by then; the start of a server counts.
    Raises:  InputError, ExtrapolationError: as `fidelity`.
             MeasurementError: the time limit came before the last run; what is there is kept.
    """
    engine_args = engine_args.serving(variant)
    clock = _Clock(inf if time_limit_s is None else time.monotonic() + time_limit_s)
    asked = [] if latency else list(calibration_points(variant, engine_args, seed=study.seed))
    jobs = [_Job(point, folder / "calibration") for point in asked]
    calibration: list[Measurement] = []
    measure = _kept if only_kept else _measured
    with ExitStack() as stack:
        engine = lazily(stack, variant, engine_args, start, folder)
        begins = 0.0
        if jobs and not study.settled:
            begins, progress = 0.25, part(on_progress, 0.0, 0.25)
            found = measure(jobs, engine, clock, progress)
            calibration = [m for _, m in found]
            latency, jobs = model_of(calibration, seed=study.seed), []
        loads = Loads.of(study, latency, engine_args, folder)
        doubts = beyond(latency, loads, engine_args, force=force)
        for workload in () if only_kept else loads.workloads.values():
            requests_for(variant, workload, engine_args)  # refuse before an engine is started
        points = load_points(loads, variant, engine_args)
        jobs = mixed(jobs, [_Job(point, folder, usable) for point in points])
        found = measure(jobs, engine, clock, part(on_progress, begins, 1.0))
    return Runs(
        loads=loads,
        of_loads=[m for job, m in found if job.folder == folder],
        fitted_to=calibration + [m for job, m in found if job.folder != folder],
        latency=latency,
        doubts=doubts,
    )


def usable(measured: Measurement) -> bool:
    """Whether nothing speaks against a run but what belongs to its load."""
    return all(any(mark in reason for mark in _BELONGS) for reason in measured.invalid)


@dataclass(frozen=True)
class _Job:
    """A point, where it is kept, and whether what came of it will do."""

    point: Point
    folder: Path
    usable: Callable[[Measurement], bool] = lambda measured: not measured.invalid


@dataclass
class _Clock:
    """Whether there is time for another run: as long as its load, and what runs took beyond that."""

    until_s: float
    _beyond_s: dict[bool, float] = field(default_factory=dict)
    _running: tuple[Point, float] | None = None

    def begins(self, point: Point) -> bool:
        """Note that a run begins; False where there is no time for it."""
        self.ended()
        closed, load_s = _planned(point)
        now_s = time.monotonic()
        self._running = (point, now_s)
        return now_s + load_s + self._beyond_s.get(closed, 0.0) <= self.until_s

    def ended(self) -> None:
        """Note that the run is over, if there was one."""
        if self._running is not None:
            point, began_s = self._running
            closed, load_s = _planned(point)
            beyond_s = time.monotonic() - began_s - load_s
            self._beyond_s[closed] = max(self._beyond_s.get(closed, 0.0), beyond_s)
        self._running = None


def _planned(point: Point) -> tuple[bool, float]:
    """Whether it is a closed loop, and how long its load lasts; nobody knows of a closed loop."""
    closed = isinstance(point.workload.arrivals, ClosedLoop)
    return closed, 0.0 if closed else point.workload.duration_s


def _measured(
    jobs: Sequence[_Job],
    engine: Callable[[], Engine],
    clock: _Clock,
    on_progress: OnProgress | None,
) -> list[tuple[_Job, Measurement]]:
    done: list[tuple[_Job, Measurement]] = []
    for number, job in enumerate(jobs):

        def running(point: Point = job.point) -> Engine:
            started = engine()
            if not clock.begins(point):
                raise MeasurementError(
                    f"the time limit came after {len(done)} of {len(jobs)} runs",
                    remedy="They are kept: call again to go on.",
                )
            return started

        progress = part(on_progress, number / len(jobs), (number + 1) / len(jobs))
        found = once(job.point, running, job.folder, usable=job.usable, on_progress=progress)
        clock.ended()
        done.append((job, found))
    return done


def _kept(
    jobs: Sequence[_Job],
    engine: Callable[[], Engine],
    clock: _Clock,
    on_progress: OnProgress | None,
) -> list[tuple[_Job, Measurement]]:
    there = [(job, job.point.measured(job.folder)) for job in jobs]
    return [(job, measured) for job, measured in there if measured is not None]


def mixed(*queues: Sequence[T]) -> list[T]:
    """Several queues as one, each in its order and spread evenly over the whole."""
    placed = [((i + 0.5) / len(queue), one) for queue in queues for i, one in enumerate(queue)]
    return [one for _, one in sorted(placed, key=lambda place: place[0])]


def load_points(loads: Loads, variant: Variant, engine_args: EngineArgs) -> list[Point]:
    """Every load once, then all of them backwards, and so on."""
    names = list(loads.workloads)
    return [
        Point(_named(variant, name, repeat), variant, loads.workloads[name], "server", engine_args)
        for repeat in range(loads.study.repeats)
        for name in (reversed(names) if repeat % 2 else names)
    ]


def _named(variant: Variant, load: str, repeat: int) -> str:
    return f"{variant.name}-{load.replace('%', 'pct')}-repeat{repeat}"


def beyond(
    latency: LatencyModel | None, loads: Loads, engine_args: EngineArgs, *, force: bool
) -> list[str]:
    """What a model was not fitted to, or was fitted to as well; nothing while there is none.

    Raises:  ExtrapolationError: loads far outside what the model was fitted to.
    """
    if latency is None:
        return []
    doubts = [*latency.doubts, *_fitted_too(latency, loads)]
    for workload in loads.workloads.values():
        doubts += check_range(latency, engine_args, workload, force=force)
    return doubts


def _fitted_too(latency: LatencyModel, loads: Loads) -> list[str]:
    """Lengths that were fitted as well: what is then tested is less than it seems."""
    schedule = next(iter(loads.workloads.values())).schedule()
    drawn = len({*zip(schedule.prompt_tokens, schedule.output_tokens, strict=True)}) > 1
    mean = f"{schedule.prompt_tokens.mean():.0f}/{schedule.output_tokens.mean():.0f}"
    known = {shape.split()[0] for shape in latency.shapes}
    if ("~" if drawn else "") + mean in known:
        return [f"the model was fitted to lengths like these ({mean} tokens) as well"]
    return []
