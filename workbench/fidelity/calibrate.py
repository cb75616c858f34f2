"""The measurements that a model is fitted to, on the very server that is then asked for other loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from serving.errors import MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.latency import LatencyModel
from simulations.traffic import ClosedLoop, Fixed, Lengths, Uniform, Workload
from workbench.fit import fit
from workbench.measure.measurement import Measurement
from workbench.measure.points import Point
from workbench.measure.validity import MIN_REQUESTS

_LONGEST_OUTPUT = 256
_ALONE_REQUESTS = 3 * MIN_REQUESTS
_FEW_REQUESTS = 6 * MIN_REQUESTS


def model_of(measured: Sequence[Measurement], *, seed: int) -> LatencyModel:
    """Fit what can be trusted.

    Raises:  MeasurementError: nothing can, or the engine logs no steps.
    """
    found = [m for m in measured if not m.invalid]
    if not found:
        raise MeasurementError(
            "no measurement for the fit can be trusted",
            remedy="Measure again on a quiet machine, or give a fitted model.",
        )
    return fit(found, seed=seed)


def calibration_points(variant: Variant, engine_args: EngineArgs, *, seed: int) -> Iterator[Point]:
    """Closed loops: long prompts, long answers, both alike, and lengths that mix prefills with decodes.

    A single user sends more requests with shorter answers: alone, a sequence costs little more than
    its step, and what a request costs outside the steps is seen there. So few users with long prompts
    that most prefills are alone among steps that decode: what one costs in a busy engine is seen there.
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
    briefly = Uniform(min_tokens=2, max_tokens=max(long_output // 8, 2))
    long_prompts = Uniform(min_tokens=1, max_tokens=max(3 * room // 8, 1))
    most = engine_args.max_num_seqs
    loops: list[tuple[int, int, tuple[str, Lengths, Lengths]]] = [
        (1, _ALONE_REQUESTS, ("mixed", mixed, briefly)),
        (max(2, most // 32), _FEW_REQUESTS, ("few", long_prompts, shapes[-1][2])),
    ]
    for users in dict.fromkeys((max(2, most // 8), max(2, most // 2), max(2, most))):
        loops += [(users, max(MIN_REQUESTS, 2 * users), shape) for shape in shapes]
    for users, requests, (name, prompts, outputs) in loops:
        load = Workload(
            arrivals=ClosedLoop(concurrency=users, requests=requests),
            prompt_tokens=prompts,
            output_tokens=outputs,
            seed=seed,
        )
        point = f"{variant.name}-{name}-batch{users}"
        yield Point(point, variant, load, "server", engine_args)
