"""Who runs trials: this process, processes of this machine, or the CPUs of a Ray cluster.

All of them take jobs and give the scores in the order of the jobs, so that a search does not depend on
who they are and how many. A worker that dies (killed, out of memory) takes its trial with it: that has
failed, another worker stands in, and the search goes on.
"""

from __future__ import annotations

import gc
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import Any

from serving.errors import EngineError, InputError
from workbench.apart import Child, Link
from workbench.ray_cluster import connected
from workbench.tune.evaluate import Job, Score, failed, score

Run = Callable[[Sequence["Job | Score"]], Iterator[Score]]
"""Runs jobs, and gives their scores in order; what has a score already is not run."""


@contextmanager
def workers(n_jobs: int = 1, ray: str | None = None) -> Iterator[Run]:
    """What runs trials, until the block ends.

    Args:    n_jobs: processes of this machine; 1 is this process alone.
             ray: address of a Ray cluster, whose CPUs run one trial each, in place of n_jobs; the
                 workbench has to be installed on its nodes.
    Raises:  InputError: less than one process, or no cluster there.
    """
    if n_jobs < 1:
        raise InputError(f"n_jobs(={n_jobs}) must be >= 1", remedy="One per core is usual.")
    if ray is not None:
        package = connected(ray)
        yield lambda jobs: _on_ray(package, jobs)
    elif n_jobs == 1:
        yield lambda jobs: map(_run, jobs)
    else:
        with ExitStack() as stack:
            yield _Processes(stack, n_jobs).run


def work(link: Link) -> None:
    """A worker process: the score of each job that comes."""
    gc.freeze()  # what is loaded stays, and need not be looked at after each trial
    while True:
        link.send(_unpacked(link.receive()))


class _Processes:
    """At most so many processes, started when there is something to do for them."""

    def __init__(self, stack: ExitStack, most: int) -> None:
        self._stack = stack
        self._most = most
        self._idle: list[Child] = []

    def run(self, jobs: Sequence[Job | Score]) -> Iterator[Score]:
        todo = deque(enumerate(jobs))
        busy: dict[Any, tuple[Child, int]] = {}
        scores: dict[int, Score] = {}
        for wanted in range(len(jobs)):
            while wanted not in scores:
                while todo and len(busy) < self._most:
                    number, job = todo.popleft()
                    child = self._begun(job)
                    if isinstance(child, Score):
                        scores[number] = child
                    else:
                        busy[child.connection] = child, number
                for connection in wait(list(busy)) if busy else ():
                    child, number = busy.pop(connection)
                    scores[number] = self._ended(child)
            yield scores.pop(wanted)

    def _begun(self, job: Job | Score) -> Child | Score:
        """The process that is at it now; its score where there is nothing to run."""
        if isinstance(job, Score):
            return job
        try:
            packed = pickle.dumps(job)
        except Exception as error:  # pickle raises what it likes
            return failed(f"no other process can be told of the trial: {error}")
        while self._idle:
            child = self._idle.pop()
            try:
                child.send(packed)
            except OSError:  # it died while it had nothing to do
                continue
            return child
        child = self._stack.enter_context(Child(work))
        child.send(packed)
        return child

    def _ended(self, child: Child) -> Score:
        try:
            _, found = child.receive()
        except EngineError as error:
            return failed(error.problem)
        self._idle.append(child)
        assert isinstance(found, Score)
        return found


def _unpacked(packed: bytes) -> Score:
    try:
        job: Job = pickle.loads(packed)
    except Exception as error:  # whatever importing what it names raises
        return failed(f"the worker cannot load the trial: {type(error).__name__}: {error}")
    return score(job)


def _run(job: Job | Score) -> Score:
    return job if isinstance(job, Score) else score(job)


def _on_ray(ray: Any, jobs: Sequence[Job | Score]) -> Iterator[Score]:
    """Each job is a task of one CPU, not tried again: a trial that needs too much memory always does."""
    task = ray.remote(num_cpus=1, max_retries=0)(_run)
    asked = [job if isinstance(job, Score) else task.remote(job) for job in jobs]
    for one in asked:
        try:
            yield one if isinstance(one, Score) else ray.get(one)
        except ray.exceptions.RayError as error:
            yield failed(f"the Ray task ended: {str(error).strip().splitlines()[0]}")
