"""The Optuna study: stored, resumable, the same in sequence and in parallel.

Trials are asked for in batches of a fixed size and told together, in order, and the sampler of each
batch is seeded by how many trials came before it. So the result depends neither on who runs the batch
(how many processes, or a Ray cluster) nor on whether the search was killed: what a dead run left
RUNNING is marked failed, and its batch is asked for again. Within a batch TPE counts the trials before
that have no result yet among the bad ones (constant liar), so that they do not all go to one place;
the random sampler looks at none.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import ValidationError

from serving.values import one_line
from workbench.tune.evaluate import Job, Score, failed
from workbench.tune.point import JOIN, Point, Suggester, target_name
from workbench.tune.workers import Run

_EI_CANDIDATES = 100
"""More than Optuna's 24: a dozen parameters are chosen together."""
_SCORE = "score"
_POINT = "point"

Sampler = Literal["tpe", "gp", "random"]
Objective = Literal["cost", "front"]
OnTrial = Callable[[int, "Score | None"], None]


class Search:
    """A study in a file, which optuna-dashboard opens.

    Args:    storage: the file; made where it is missing. `.log` is Optuna's journal, others SQLite.
             name: of the study: another search in the same file is another study.
             draw: lets a trial choose its point.
             first: parameters of the trials to try first.
             seed: the same seed gives the same trials.
             sampler: who chooses after the first.
             objective: `cost`, the SLO being a constraint; or `front`: cost against attainment.
             at_once: trials in a batch; more workers have nothing to do.
    """

    def __init__(
        self,
        storage: Path,
        name: str,
        draw: Callable[[Suggester], Point],
        *,
        first: Sequence[Mapping[str, Any]],
        seed: int,
        sampler: Sampler = "tpe",
        objective: Objective = "cost",
        at_once: int = 4,
    ) -> None:
        import optuna

        self._draw = draw
        self._first = first
        self._seed = seed
        self._sampler = sampler
        self._objective = objective
        self._at_once = at_once
        with _quiet():
            self._study = optuna.create_study(
                storage=_storage(storage),
                study_name=name,
                directions=["minimize", "maximize"] if objective == "front" else ["minimize"],
                load_if_exists=True,
            )
        self._abandon()

    def run(
        self,
        trials: int,
        job: Callable[[Point, tuple[float, ...]], Job],
        *,
        run: Run,
        on_trial: OnTrial,
    ) -> None:
        """Go on until so many trials are finished.

        Args:    job: of a point, and the incumbent's GPU hours by seed; where it refuses the point,
                     the trial has failed.
                 run: whoever does the work (workbench/tune/workers.py).
                 on_trial: called with how many are finished, and the last one's score.
        """
        done = len(self._finished())
        on_trial(done, None)
        with _quiet():
            while done < trials:
                asked = self._ask(min(self._at_once, trials - done), done)
                best = self._incumbent()
                jobs = [_made(job, point, best) for _, point in asked]
                scores = []
                for found in run(jobs):
                    scores.append(found)
                    on_trial(done + len(scores), found)
                for (trial, point), found in zip(asked, scores, strict=True):
                    self._tell(trial, point, found)
                done += len(asked)

    def trials(self) -> list[tuple[Point, Score]]:
        """Point and score of every finished trial, in order."""
        return [
            (trial.user_attrs[_POINT], Score(**trial.user_attrs[_SCORE]))
            for trial in self._finished()
        ]

    def table(self) -> pd.DataFrame:
        """One row per finished trial: number, state, its metrics, keeps_slo, and its point."""
        rows = []
        for number, (point, found) in enumerate(self.trials()):
            where = dict(point)
            metric = where.pop("metrics")
            rows.append(
                {
                    "number": number,
                    "state": "FAIL" if found.error else "COMPLETE",
                    **found.metrics,
                    "keeps_slo": found.keeps_slo,
                    "over_limit": max(found.over.values(), default=np.nan),
                    "seeds_run": len(found.hours),
                    "stopped": found.stopped,
                    "error": found.error,
                    "metric": metric,
                    "target": point[target_name(metric.split(JOIN)[0])],
                    **where,
                }
            )
        return pd.DataFrame(rows)

    def _incumbent(self) -> tuple[float, ...]:
        """GPU hours by seed of the cheapest trial that keeps the SLO on every seed."""
        kept = [s for _, s in self.trials() if s.keeps_slo and not s.stopped]
        return min((tuple(s.hours) for s in kept), key=sum, default=())

    # -- storage ---------------------------------------------------------------------------------

    def _of_states(self, *states: str) -> list[Any]:
        return [
            trial for trial in self._study.get_trials(deepcopy=False) if trial.state.name in states
        ]

    def _finished(self) -> list[Any]:
        """Without those that a dead run left: they failed without a reason."""
        ended = self._of_states("COMPLETE", "FAIL")
        return [
            trial
            for trial in ended
            if trial.state.name == "COMPLETE" or trial.user_attrs.get(_SCORE, {}).get("error")
        ]

    def _abandon(self) -> None:
        """Close what a dead run left."""
        from optuna.trial import TrialState

        while self._of_states("WAITING"):
            self._study.ask()
        for left in self._of_states("RUNNING"):
            self._study.tell(left.number, state=TrialState.FAIL)

    def _ask(self, count: int, done: int) -> list[tuple[Any, Point]]:
        seed = int(np.random.SeedSequence([self._seed, done]).generate_state(1)[0])
        # The points to start from stand in for random ones.
        self._study.sampler = _sampler(self._sampler, seed, startup=len(self._first))
        asked = []
        for number in range(done, done + count):
            if number < len(self._first):
                self._study.enqueue_trial(dict(self._first[number]))
            trial = self._study.ask()
            asked.append((trial, self._draw(trial)))
        return asked

    def _tell(self, trial: Any, point: Point, found: Score) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(_POINT, dict(point))
        trial.set_user_attr(_SCORE, _plain(found))
        if found.error:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        if self._objective == "front":
            # The SLO is what is given up step by step: as a constraint it would hide most of that.
            self._study.tell(trial, [found.metrics["gpu_hours"], found.metrics["slo_attainment"]])
            return
        for name, over in found.over.items():
            trial.set_constraint(name, over)
        self._study.tell(trial, found.metrics["gpu_hours"])


def scores_of(
    points: Sequence[Point], job: Callable[[Point, tuple[float, ...]], Job], run: Run
) -> list[Score]:
    """Scores of points that no search has asked for, raced against none."""
    return list(run([_made(job, point, ()) for point in points]))


def _plain(found: Score) -> dict[str, Any]:
    return {
        "metrics": dict(found.metrics),
        "over": dict(found.over),
        "hours": list(found.hours),
        "stopped": found.stopped,
        "error": found.error,
        "partial": found.partial,
    }


def _made(
    job: Callable[[Point, tuple[float, ...]], Job], point: Point, best: tuple[float, ...]
) -> Job | Score:
    try:
        return job(point, best)
    except ValidationError as error:
        return failed(one_line(error))


def _storage(path: Path) -> Any:
    """What Optuna keeps a study in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".log":
        return f"sqlite:///{path.resolve()}"
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _sampler(name: Sampler, seed: int, *, startup: int) -> Any:
    """Who chooses the points of the next batch."""
    from optuna import samplers

    if name == "random":
        return samplers.RandomSampler(seed=seed)
    if name == "gp":
        return samplers.GPSampler(
            seed=seed, n_startup_trials=startup, warn_independent_sampling=False
        )
    return samplers.TPESampler(
        seed=seed,
        multivariate=True,
        n_ei_candidates=_EI_CANDIDATES,
        n_startup_trials=startup,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says on stderr what it does; here progress is reported by callback."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
