"""The measurements that a model is fitted to, on the very server that is then asked for other loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from serving.errors import MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.latency import LatencyModel
from simulations.traffic import ClosedLoop, Fixed, Lengths, Uniform, Workload
from workbench.fit import fit
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.points import Point, once, part
from workbench.measure.validity import MIN_REQUESTS

_LONGEST_OUTPUT = 256


def calibrated(
    variant: Variant,
    engine_args: EngineArgs,
    engine: Callable[[], Engine],
    folder: Path,
    *,
    seed: int,
    on_progress: OnProgress | None = None,
) -> LatencyModel:
    """Measure closed loops of several lengths and sizes, and fit what can be trusted.

    Raises:  MeasurementError: nothing can, or the engine logs no steps.
    """
    points = list(_points(variant, engine_args, seed))
    found = []
    for number, point in enumerate(points):
        progress = part(on_progress, number / len(points), (number + 1) / len(points))
        measured = once(point, engine, folder, on_progress=progress)
        found += [] if measured.invalid else [measured]
    if not found:
        raise MeasurementError(
            "no measurement for the fit can be trusted",
            remedy="Measure again on a quiet machine, or give a fitted model.",
        )
    return fit(found, seed=seed)


def _points(variant: Variant, engine_args: EngineArgs, seed: int) -> Iterator[Point]:
    """Long prompts, long answers, both alike, and lengths that mix prefills with decodes.

    A single user is asked for one of them: alone, a sequence costs little more than its step.
    """
    room = engine_args.max_model_len
    even = max(min(room // 16, _LONGEST_OUTPUT), 2)
    long_output = max(min(room // 8, _LONGEST_OUTPUT), 2)
    fixed = ((even, even), (3 * room // 8, max(room // 64, 2)), (max(room // 64, 1), long_output))
    shapes: list[tuple[str, Lengths, Lengths]] = [
        (f"{prompt}x{output}", Fixed(tokens=prompt), Fixed(tokens=output))
        for prompt, output in fixed
    ]
    mixed = Uniform(min_tokens=1, max_tokens=max(room // 4, 1))
    shapes.append(("mixed", mixed, Uniform(min_tokens=2, max_tokens=max(long_output // 2, 2))))
    most = engine_args.max_num_seqs
    for users in dict.fromkeys((1, max(2, most // 8), max(2, most // 2), most)):
        for name, prompts, outputs in shapes[:1] if users == 1 else shapes:
            load = Workload(
                arrivals=ClosedLoop(concurrency=users, requests=max(MIN_REQUESTS, 2 * users)),
                prompt_tokens=prompts,
                output_tokens=outputs,
                seed=seed,
            )
            point = f"{variant.name}-{name}-batch{users}"
            yield Point(point, variant, load, "server", engine_args)
