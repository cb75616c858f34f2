"""One point: a workload on a variant, measured on an engine that runs or is started for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from serving.errors import EngineError, InputError
from serving.plan import EngineArgs, Variant
from serving.values import Value
from simulations.traffic import ClosedLoop, Constant, Fixed, Gamma, Poisson, Workload
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.environment import Environment
from workbench.measure.measurement import Measurement, Mode
from workbench.measure.prompts import requests_for
from workbench.measure.roofline import ModelCost
from workbench.measure.telemetry import Telemetry
from workbench.measure.validity import Evidence, doubts, reusable_tokens

StartEngine = Callable[[Variant, EngineArgs, Path], Engine]
_WARMUP_REQUESTS = 8
_WARMUP_TOKENS = 16
_FAILED = "failed.json"
_ATTEMPTS = 3


def start_offline(variant: Variant, engine_args: EngineArgs, folder: Path) -> Engine:
    """Real vLLM in this process."""
    from workbench.measure.vllm_offline import OfflineEngine

    return OfflineEngine(variant, engine_args)


def start_server(variant: Variant, engine_args: EngineArgs, folder: Path) -> Engine:
    """A real vLLM server as a child process; its log lies in the folder."""
    from workbench.measure.vllm_server import ServerEngine

    return ServerEngine(variant, engine_args, folder=folder / "logs")


START: dict[Mode, StartEngine] = {"offline": start_offline, "server": start_server}


class Failure(Value):
    """A point that could not be measured, and why."""

    name: str
    variant: Variant
    engine: EngineArgs
    workload: Workload
    cause: str
    remedy: str = ""

    def error(self) -> EngineError:
        """The same, to be raised."""
        return EngineError(self.cause, remedy=self.remedy)


@dataclass(frozen=True)
class Point:
    """One measurement to make."""

    name: str
    variant: Variant
    workload: Workload
    mode: Mode
    engine_args: EngineArgs

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine_args", self.engine_args.serving(self.variant))

    def finished(self, folder: Path) -> Measurement | None:
        """The same point as measured before, if it is there and can be trusted."""
        there = self.measured(folder)
        failed = (folder / self.name / _FAILED).exists()
        return there if there and not there.invalid and not failed else None

    def measured(self, folder: Path) -> Measurement | None:
        """The same point as measured before, trusted or not."""
        try:
            there = Measurement.read(folder / self.name)
        except InputError:
            return None
        same = (
            there.variant == self.variant
            and there.workload == self.workload
            and there.mode == self.mode
            and there.engine == self.engine_args
        )
        return there if same else None

    def failed(self, folder: Path) -> Failure | None:
        """How the same point failed before, if it did."""
        path = folder / self.name / _FAILED
        if not path.exists():
            return None
        there = Failure.read(path)
        return there if there == self.failure(there.cause, there.remedy) else None

    def failure(self, cause: str, remedy: str = "") -> Failure:
        """What to say when it cannot be measured."""
        return Failure(
            name=self.name,
            variant=self.variant,
            engine=self.engine_args,
            workload=self.workload,
            cause=cause,
            remedy=remedy,
        )


def measure(
    variant: Variant,
    workload: Workload,
    *,
    engine_args: EngineArgs,
    mode: Mode = "server",
    folder: Path,
    engine: Engine | None = None,
    name: str | None = None,
    on_progress: OnProgress | None = None,
) -> Measurement:
    """Run one workload on one variant, and write the result to folder/name.

    Args:    engine: a running engine of this variant to use; None starts one and stops it.
             name: of the point; None makes one of variant, mode and load.
    Raises:  InputError: the workload does not fit the engine.
             EngineError: vLLM did not start.
    """
    load = f"{variant.name}-{mode}-{load_name(workload)}"
    point = Point(name or load, variant, workload, mode, engine_args)
    requests_for(variant, workload, engine_args)  # refuse before an engine is started
    with ExitStack() as stack:
        if engine is None:
            begin = part(on_progress, 0.0, 0.3)
            engine = enter(stack, variant, engine_args, START[mode], folder, begin)
            on_progress = part(on_progress, 0.3, 1.0)
        return _measure(point, engine, folder, on_progress)


def once(
    point: Point,
    engine: Callable[[], Engine],
    folder: Path,
    *,
    usable: Callable[[Measurement], bool] = lambda measured: not measured.invalid,
    on_progress: OnProgress | None = None,
) -> Measurement:
    """A point that lies there already, or is measured now; one that is not usable, up to three times.

    Args:    engine: gives the running engine; not called where nothing is to be measured.
    Returns: the last attempt, usable or not.
    """
    there = point.measured(folder)
    if there is not None and usable(there):
        return there
    for _ in range(_ATTEMPTS):
        there = _measure(point, engine(), folder, on_progress)
        if usable(there):
            break
    assert there is not None
    return there


def measure_points(
    points: Sequence[Point],
    start: StartEngine,
    folder: Path,
    on_progress: OnProgress | None = None,
) -> Iterator[Measurement | Failure]:
    """Measure points of one variant and one set of engine arguments, each written when it is done.

    An engine that dies fails the point it was at, and the next point gets a new one; one that does
    not start fails all that are left.
    """
    # Starting counts as much as two points in the progress that is shown.
    total = len(points) + 2
    stack = ExitStack()
    engine: Engine | None = None
    with stack:
        for i, point in enumerate(points):
            if engine is None:
                begin = part(on_progress, i / total, (i + 2) / total)
                try:
                    engine = enter(stack, point.variant, point.engine_args, start, folder, begin)
                except EngineError as error:
                    for left in points[i:]:
                        yield _fail(left, folder, error.problem, error.remedy)
                    return
            progress = part(on_progress, (i + 2) / total, (i + 3) / total)
            try:
                measured = _measure(point, engine, folder, progress)
                ended = engine.ended()
            except EngineError as error:
                ended = error.problem
            if ended is None:
                yield measured
            else:
                stack.close()
                engine = None
                yield _fail(point, folder, ended)


def _fail(point: Point, folder: Path, cause: str, remedy: str = "") -> Failure:
    failure = point.failure(cause, remedy)
    failure.write(folder / point.name / _FAILED)
    return failure


def enter(
    stack: ExitStack,
    variant: Variant,
    engine_args: EngineArgs,
    start: StartEngine,
    folder: Path,
    on_progress: OnProgress | None = None,
) -> Engine:
    """Start an engine and send it a few requests that are not measured."""
    if on_progress is not None:
        on_progress(f"starting vLLM with {variant.name}", 0.0)
    engine = stack.enter_context(start(variant, engine_args.serving(variant), folder))
    if on_progress is not None:
        on_progress(f"warming up {variant.name}", 0.9)
    half = max(engine_args.max_model_len // 2, 1)
    tokens = Fixed(tokens=min(_WARMUP_TOKENS, half))
    warmup = Workload(
        arrivals=ClosedLoop(concurrency=_WARMUP_REQUESTS // 2, requests=_WARMUP_REQUESTS),
        prompt_tokens=tokens,
        output_tokens=tokens,
    )
    requests = requests_for(variant, warmup, engine_args)
    engine.run(requests, concurrency=_WARMUP_REQUESTS // 2)
    return engine


def _measure(
    point: Point, engine: Engine, folder: Path, on_progress: OnProgress | None
) -> Measurement:
    environment = Environment.capture()
    workload, arrivals = point.workload, point.workload.arrivals
    requests = requests_for(point.variant, workload, point.engine_args)

    def report(doing: str, share: float) -> None:
        if on_progress is not None:
            on_progress(f"{point.name}: {doing}", share)

    with Telemetry() as telemetry:
        run = engine.run(
            requests,
            concurrency=arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None,
            on_progress=report,
        )
    measured = Measurement(
        name=point.name,
        mode=point.mode,
        variant=point.variant,
        engine=point.engine_args,
        workload=workload,
        requests=run.requests.assign(counted=run.requests["scheduled_s"] >= workload.warmup_s),
        steps=run.steps,
        telemetry=telemetry.frame(run.start_s),
        replica=engine.replica,
        environment=environment,
        client=dict(run.client),
        cost=ModelCost.of(point.variant, point.engine_args),
    )
    evidence = Evidence(
        requests=measured.requests,
        steps=measured.steps,
        workload=workload,
        server=point.mode == "server",
        cached_tokens=run.cached_tokens,
        reusable_tokens=reusable_tokens(workload.schedule()) if run.cached_tokens else 0,
        client=measured.client,
        telemetry=measured.device(),
    )
    measured = measured.judged((*run.doubts, *doubts(evidence)))
    measured.write(folder / point.name)
    (folder / point.name / _FAILED).unlink(missing_ok=True)
    return measured


def load_name(workload: Workload) -> str:
    """Short name of a load, for folders: batch8, rate4, replay."""
    arrivals = workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        return f"batch{arrivals.concurrency}"
    if isinstance(arrivals, Constant | Poisson | Gamma):
        return f"rate{arrivals.rate_rps:g}"
    return arrivals.kind


def part(on_progress: OnProgress | None, low: float, high: float) -> OnProgress | None:
    """Progress of a part of the work, as the share of the whole."""
    if on_progress is None:
        return None
    return lambda doing, share: on_progress(doing, low + (high - low) * share)
