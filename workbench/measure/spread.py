"""Groups of points over the GPUs of a host, or of a Ray cluster.

A group is one engine: it reserves the GPUs that it needs, and nothing else runs on them meanwhile. On
this host each set of GPUs has one worker process, which imports vLLM once for all its groups. Without
a GPU there is one worker: measurements on one CPU would measure each other.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from serving.errors import EngineError, InputError
from workbench.apart import Child, Link
from workbench.measure.engine import OnProgress
from workbench.measure.environment import gpu_names
from workbench.measure.measurement import Measurement
from workbench.measure.points import Failure, Point, StartEngine, measure_points
from workbench.ray_cluster import connected

Result = Measurement | Failure


@dataclass(frozen=True)
class Group:
    """Points of one variant on one engine."""

    points: tuple[Point, ...]

    @property
    def gpus(self) -> int:
        """How many the engine needs."""
        return self.points[0].engine_args.tensor_parallel_size


@dataclass(frozen=True)
class Where:
    """On what to measure.

    Attributes:
        ray: address of a Ray cluster ("auto": the one of this host); None is this host alone.
        gpus: indices of this host's GPUs to use; None is all of them.
    """

    ray: str | None = None
    gpus: tuple[int, ...] | None = None


def spread(
    groups: Sequence[Group],
    start: StartEngine,
    folder: Path,
    where: Where,
    on_progress: OnProgress | None = None,
) -> Iterator[Result]:
    """Measure groups where there is room, and give each point when it is done.

    Raises:  InputError: an engine needs more GPUs than there are, or there is no Ray.
    """
    total = sum(len(group.points) for group in groups)
    done = 0

    def say(doing: str) -> None:
        if on_progress is not None:
            on_progress(doing, done / total)

    if groups:
        for result in (_on_ray if where.ray else _here)(groups, start, folder, where, say):
            done += 1
            yield result


def _here(
    groups: Sequence[Group],
    start: StartEngine,
    folder: Path,
    where: Where,
    say: Callable[[str], None],
) -> Iterator[Result]:
    gpus = list(where.gpus if where.gpus is not None else range(len(gpu_names())))
    largest = max(group.gpus for group in groups)
    if largest > max(len(gpus), 1):
        raise InputError(
            f"tensor_parallel_size(={largest}) needs more GPUs than the {len(gpus)} here",
            remedy="Lower it, or give a Ray cluster that has them.",
        )
    for size in sorted({group.gpus for group in groups}):
        sets = [gpus[at : at + size] for at in range(0, len(gpus) - size + 1, size)]
        todo = deque(group for group in groups if group.gpus == size)
        yield from _workers(todo, sets or [[]], start, folder, say)


def _workers(
    todo: deque[Group],
    sets: Sequence[Sequence[int]],
    start: StartEngine,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[Result]:
    """One worker per set of GPUs, each with the next group when it is through with the last."""
    with ExitStack() as stack:
        busy: dict[Any, _Worker] = {}
        for devices in sets[: len(todo)]:
            worker = _Worker(stack, devices, start, folder)
            worker.begin(todo.popleft())
            busy[worker.child.connection] = worker
        while busy:
            for connection in wait(list(busy)):
                worker = busy.pop(connection)
                try:
                    _, message = worker.child.receive()
                except EngineError as error:
                    # The process died with the engine in it; what is left gets a new one.
                    failed, left = worker.died(error, folder)
                    yield failed
                    if left is not None:
                        todo.appendleft(left)
                    worker = _Worker(stack, worker.devices, start, folder)
                    message = None
                if isinstance(message, str):
                    say(message)
                elif isinstance(message, Measurement | Failure):
                    worker.left.popleft()
                    yield message
                elif todo:
                    worker.begin(todo.popleft())
                else:
                    continue
                busy[worker.child.connection] = worker


class _Worker:
    def __init__(
        self, stack: ExitStack, devices: Sequence[int], start: StartEngine, folder: Path
    ) -> None:
        self.devices = devices
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))} if devices else {}
        self.child = stack.enter_context(Child(work, start, folder, environment=chosen))
        self.left: deque[Point] = deque()

    def begin(self, group: Group) -> None:
        self.left = deque(group.points)
        self.child.send(group)

    def died(self, error: EngineError, folder: Path) -> tuple[Failure, Group | None]:
        """The point it was at, as a failure, and the points that are left."""
        failure = self.left.popleft().failure(error.problem, error.remedy)
        failure.write(folder / failure.name / "failed.json")
        return failure, Group(tuple(self.left)) if self.left else None


def work(link: Link, start: StartEngine, folder: Path) -> None:
    """A worker: each group that comes is measured; None after each says that it is through."""
    while True:
        group: Group = link.receive()
        for result in measure_points(
            group.points, start, folder, lambda doing, _: link.send(doing)
        ):
            link.send(result)
        link.send(None)


def _on_ray(
    groups: Sequence[Group],
    start: StartEngine,
    folder: Path,
    where: Where,
    say: Callable[[str], None],
) -> Iterator[Result]:
    """Each group is a task that streams its points; this process writes them."""
    ray = connected(where.ray or "auto")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((node.get("GPU", 0) for node in nodes), default=0)
    cores = min((node.get("CPU", 1) for node in nodes), default=1)
    largest = max(group.gpus for group in groups)
    if most and largest > most:
        raise InputError(
            f"tensor_parallel_size(={largest}) needs more GPUs than any node's {most:g}",
            remedy="Lower it, or add a node that has them.",
        )
    remote = ray.remote(_on_a_node)
    # Without GPUs a group takes a whole node's CPU, since measurements there disturb each other.
    needs = [{"num_gpus": g.gpus, "num_cpus": 1} if most else {"num_cpus": cores} for g in groups]
    streams = {
        remote.options(**need, max_retries=0, num_returns="streaming").remote(group, start): group
        for need, group in zip(needs, groups, strict=True)
    }
    left = {stream: deque(group.points) for stream, group in streams.items()}
    while left:
        ready, _ = ray.wait(list(left), num_returns=1)
        stream = ready[0]
        try:
            result = ray.get(next(stream))
        except StopIteration:
            del left[stream]
            continue
        except ray.exceptions.RayError as error:
            for point in left.pop(stream):
                failure = point.failure(f"the Ray task ended: {str(error).splitlines()[0]}")
                failure.write(folder / failure.name / "failed.json")
                yield failure
            continue
        left[stream].popleft()
        if isinstance(result, Measurement):
            result.write(folder / result.name)
        else:
            result.write(folder / result.name / "failed.json")
        say(f"{result.name}: done")
        yield result


def _on_a_node(group: Group, start: StartEngine) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        yield from measure_points(group.points, start, Path(folder))
