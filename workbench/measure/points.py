"""The measure stage: one point, a sweep over batch sizes, a sweep over rates.

A sweep keeps every finished point: after a crash or Ctrl-C the next call goes on where it was, and
starts no engine when nothing is left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InputError
from serving.plan import EngineArgs, Variant
from simulations.traffic import ClosedLoop, Day, Fixed, Poisson, Workload
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.environment import Environment
from workbench.measure.measurement import Measurement, Mode, frame
from workbench.measure.prompts import requests_for
from workbench.measure.validity import doubts

__all__ = ["frame", "measure", "sweep_batches", "sweep_rates"]

StartEngine = Callable[[Variant, EngineArgs, Path], Engine]
_WARMUP_REQUESTS = 8
_WARMUP_TOKENS = 16


def start_offline(variant: Variant, engine_args: EngineArgs, folder: Path) -> Engine:
    """Real vLLM in this process."""
    from workbench.measure.vllm_offline import OfflineEngine

    return OfflineEngine(variant, engine_args)


def start_server(variant: Variant, engine_args: EngineArgs, folder: Path) -> Engine:
    """A real vLLM server as a child process; its log lies in the folder."""
    from workbench.measure.vllm_server import ServerEngine

    return ServerEngine(variant, engine_args, folder=folder / "logs")


_START: dict[Mode, StartEngine] = {"offline": start_offline, "server": start_server}


@dataclass(frozen=True)
class Point:
    """One measurement to make."""

    name: str
    variant: Variant
    workload: Workload
    mode: Mode
    engine_args: EngineArgs

    def finished(self, folder: Path) -> Measurement | None:
        """The same point as measured before, if it is there and can be trusted."""
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
        return there if same and not there.invalid else None


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
    point = Point(
        name or f"{variant.name}-{mode}-{_load(workload)}", variant, workload, mode, engine_args
    )
    requests_for(variant, workload, engine_args)  # refuse before an engine is started
    with ExitStack() as stack:
        if engine is None:
            engine = _enter(stack, point, _START[mode], folder, _part(on_progress, 0.0, 0.3))
            on_progress = _part(on_progress, 0.3, 1.0)
        return _measure(point, engine, folder, on_progress)


def sweep_batches(
    variants: Sequence[Variant],
    *,
    engine_args: EngineArgs,
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    prompt_tokens: int = 64,
    output_tokens: int = 64,
    repeats: int = 2,
    folder: Path,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    start: StartEngine = start_offline,
) -> list[Measurement]:
    """Closed loops of growing concurrency on each variant, offline: one engine per variant.

    Variants get the same prompts. Repeats are interleaved over the batch sizes, so that a slow spell
    of the machine does not fall on one batch size alone.
    """
    points = [
        Point(
            f"{variant.name}-batch{batch}-repeat{repeat}",
            variant,
            Workload(
                arrivals=ClosedLoop(concurrency=batch, requests=max(2 * batch, 4)),
                prompt_tokens=Fixed(tokens=prompt_tokens),
                output_tokens=Fixed(tokens=output_tokens),
                seed=seed + repeat,
            ),
            "offline",
            engine_args,
        )
        for variant in variants
        for repeat in range(repeats)
        for batch in batches
    ]
    found: list[Measurement] = []
    for i, variant in enumerate(variants):
        mine = [point for point in points if point.variant is variant]
        progress = _part(on_progress, i / len(variants), (i + 1) / len(variants))
        found += _sweep(mine, start, folder, progress)
    return found


def sweep_rates(
    variant: Variant,
    workload: Workload,
    *,
    rates_rps: Sequence[float],
    engine_args: EngineArgs,
    folder: Path,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    start: StartEngine = start_server,
) -> list[Measurement]:
    """The workload's lengths at several Poisson rates on one server."""
    points = [
        Point(
            f"{variant.name}-rate{rate_rps:g}",
            variant,
            workload.at(arrivals=Poisson(rate_rps=rate_rps), seed=seed),
            "server",
            engine_args,
        )
        for rate_rps in rates_rps
    ]
    return _sweep(points, start, folder, on_progress)


def _sweep(
    points: Sequence[Point], start: StartEngine, folder: Path, on_progress: OnProgress | None
) -> list[Measurement]:
    """Measure what is not there yet, on one engine."""
    found = {point.name: point.finished(folder) for point in points}
    missing = [point for point in points if found[point.name] is None]
    for point in missing:
        requests_for(point.variant, point.workload, point.engine_args)
    with ExitStack() as stack:
        # Starting counts as much as two points in the progress that is shown.
        total = len(missing) + 2
        for i, point in enumerate(missing):
            if i == 0:
                begin = _part(on_progress, 0.0, 2 / total)
                engine = _enter(stack, point, start, folder, begin)
            progress = _part(on_progress, (i + 2) / total, (i + 3) / total)
            found[point.name] = _measure(point, engine, folder, progress)
    if on_progress is not None:
        on_progress(f"{len(points)} points", 1.0)
    return [measured for measured in found.values() if measured is not None]


def _enter(
    stack: ExitStack,
    point: Point,
    start: StartEngine,
    folder: Path,
    on_progress: OnProgress | None,
) -> Engine:
    """Start an engine and send it a few requests that are not measured."""
    if on_progress is not None:
        on_progress(f"starting vLLM with {point.variant.name}", 0.0)
    engine = stack.enter_context(start(point.variant, point.engine_args, folder))
    if on_progress is not None:
        on_progress(f"warming up {point.variant.name}", 0.9)
    half = max(point.engine_args.max_model_len // 2, 1)
    tokens = Fixed(tokens=min(_WARMUP_TOKENS, half))
    warmup = Workload(
        arrivals=ClosedLoop(concurrency=_WARMUP_REQUESTS // 2, requests=_WARMUP_REQUESTS),
        prompt_tokens=tokens,
        output_tokens=tokens,
    )
    requests = requests_for(point.variant, warmup, point.engine_args)
    engine.run(requests, concurrency=_WARMUP_REQUESTS // 2)
    return engine


def _measure(
    point: Point, engine: Engine, folder: Path, on_progress: OnProgress | None
) -> Measurement:
    environment = Environment.capture()
    workload, arrivals = point.workload, point.workload.arrivals

    def report(doing: str, share: float) -> None:
        if on_progress is not None:
            on_progress(f"{point.name}: {doing}", share)

    run = engine.run(
        requests_for(point.variant, workload, point.engine_args),
        concurrency=arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None,
        on_progress=report,
    )
    requests = run.requests.assign(counted=run.requests["scheduled_s"] >= workload.warmup_s)
    measured = Measurement(
        name=point.name,
        mode=point.mode,
        variant=point.variant,
        engine=point.engine_args,
        workload=workload,
        requests=requests,
        steps=run.steps,
        replica=engine.replica,
        environment=environment,
        invalid=(*doubts(requests, workload, point.mode), *run.doubts),
    )
    measured.write(folder / point.name)
    return measured


def _load(workload: Workload) -> str:
    arrivals = workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        return f"batch{arrivals.concurrency}"
    if isinstance(arrivals, Day):
        return f"day{arrivals.peak_rps:g}"
    return f"rate{arrivals.rate_rps:g}"


def _part(on_progress: OnProgress | None, low: float, high: float) -> OnProgress | None:
    """Progress of a part of the work, as the share of the whole."""
    if on_progress is None:
        return None
    return lambda doing, share: on_progress(doing, low + (high - low) * share)
