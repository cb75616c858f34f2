"""Sweeps over batch sizes and over rates: every finished point is kept.

After a crash or Ctrl-C the next call goes on where it was, and starts no engine when nothing is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.plan import EngineArgs, Variant
from simulations.traffic import ClosedLoop, Fixed, Poisson, Workload
from workbench.measure.engine import OnProgress
from workbench.measure.measurement import Measurement, Measurements
from workbench.measure.points import (
    Point,
    StartEngine,
    measure_points,
    part,
    start_offline,
    start_server,
)
from workbench.measure.prompts import requests_for

_SHAPES_BATCH = 8


def sweep_batches(
    variants: Sequence[Variant],
    *,
    engine_args: EngineArgs,
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    prompt_tokens: int = 64,
    output_tokens: int = 64,
    shapes: Sequence[tuple[int, int]] = (),
    repeats: int = 2,
    folder: Path,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    start: StartEngine = start_offline,
) -> Measurements:
    """Closed loops of growing concurrency on each variant, offline: one engine per variant.

    Variants get the same prompts. Repeats are interleaved over the batch sizes, so that a slow spell
    of the machine does not fall on one batch size alone.

    Args:    shapes: other lengths of prompt and answer, measured once each at a batch of at most 8: a
                 fit needs several.
    """
    found = Measurements()
    small = min(_SHAPES_BATCH, max(batches))
    for i, variant in enumerate(variants):
        points = [
            Point(
                f"{variant.name}-batch{batch}-repeat{repeat}",
                variant,
                batch_load(batch, prompt_tokens, output_tokens, seed + repeat),
                "offline",
                engine_args,
            )
            for repeat in range(repeats)
            for batch in batches
        ]
        points += [
            Point(
                f"{variant.name}-{prompt}x{output}-batch{small}",
                variant,
                batch_load(small, prompt, output, seed),
                "offline",
                engine_args,
            )
            for prompt, output in shapes
        ]
        progress = part(on_progress, i / len(variants), (i + 1) / len(variants))
        found += _sweep(points, start, folder, progress)
    return found


def batch_load(
    concurrency: int, prompt_tokens: int, output_tokens: int, seed: int, least_requests: int = 4
) -> Workload:
    """A closed loop in which every user sends at least two requests."""
    requests = max(2 * concurrency, 4, least_requests)
    return Workload(
        arrivals=ClosedLoop(concurrency=concurrency, requests=requests),
        prompt_tokens=Fixed(tokens=prompt_tokens),
        output_tokens=Fixed(tokens=output_tokens),
        seed=seed,
    )


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
) -> Measurements:
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
) -> Measurements:
    """Measure what is not there yet, on one engine.

    A point at which the engine died is there as well, invalid, with the cause.

    Raises:  EngineError: vLLM did not start.
    """
    found = {point.name: point.finished(folder) for point in points}
    missing = [point for point in points if found[point.name] is None]
    for point in missing:
        requests_for(point.variant, point.workload, point.engine_args)
    for measured in measure_points(missing, start, folder, on_progress):
        if isinstance(measured, Measurement):
            found[measured.name] = measured
        elif (folder / measured.name / "measurement.json").exists():
            found[measured.name] = Measurement.read(folder / measured.name)
        else:
            raise measured.error()
    if on_progress is not None:
        on_progress(f"{len(points)} points", 1.0)
    return Measurements(measured for measured in found.values() if measured is not None)
