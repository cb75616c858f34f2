"""The tune stage: which variants, how large a space, the search, and the winner's proof."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from serving.errors import InfeasibleError, InputError, MeasurementError
from serving.plan import EngineArgs, Slo
from simulations.fleet import Cluster
from simulations.predict import predict
from simulations.simulate import simulate as the_twin
from simulations.traffic import Workload
from workbench.tune.admit import Admitted, admit
from workbench.tune.baselines import RANDOM, article_of, baselines
from workbench.tune.candidate import Candidate
from workbench.tune.equals import as_good
from workbench.tune.evaluate import Job, Score, Simulate
from workbench.tune.neighbours import fragile, look_around
from workbench.tune.point import Ground, Point, draw, parameters
from workbench.tune.proof import Proven, Trial, breach, replay, winner
from workbench.tune.rules import first_points
from workbench.tune.search import Objective, Sampler, Search, scores_of
from workbench.tune.space import SearchSpace
from workbench.tune.tuning import Tuning
from workbench.tune.twin import Twin
from workbench.tune.unseen import COLUMNS
from workbench.tune.workers import workers

OnProgress = Callable[[str, float], None]
_SIZED, _SEARCHED, _CHOSEN, _PROVEN, _AROUND = 0.05, 0.7, 0.73, 0.76, 0.85
"""Share of the work done after each part."""


def tune(
    candidates: Sequence[Candidate],
    workload: Workload,
    slo: Slo,
    *,
    engine: EngineArgs,
    space: SearchSpace | None = None,
    trials: int = 40,
    seeds: Sequence[int] = (0, 1),
    choice_seeds: Sequence[int] = (50, 51, 52),
    unseen_seeds: Sequence[int] = (100, 101, 102),
    storage: Path,
    cluster: Cluster | None = None,
    seed: int = 0,
    sampler: Sampler = "tpe",
    objective: Objective = "cost",
    early: bool = True,
    n_jobs: int = 1,
    ray: str | None = None,
    at_once: int = 4,
    neighbour_seeds: int | None = None,
    random_baseline: bool = False,
    gpu_usd_per_hour: float = 2.5,
    gpus_per_replica: int = 1,
    force: bool = False,
    simulate: Simulate = the_twin,
    on_progress: OnProgress | None = None,
) -> Tuning:
    """Find the plan with the fewest GPU hours a day that keeps the SLO.

    The SLO, lost requests included, is a constraint of the search, never part of what is minimised:
    a trial keeps it where its worst seed does. A trial that clearly breaks it, or clearly costs more
    than the best so far on the same seeds, ends early; one that raises has failed. The winner is the
    cheapest trial that also keeps the SLO on the traffic of `choice_seeds`, by the upper end of the
    interval; where the cheapest does not, the next is taken. What it comes to is then said on the
    traffic of `unseen_seeds`, which had a part in nothing: no figure flatters itself by having been
    chosen, and a winner that breaks the SLO there has a doubt. The same seed gives the same winner,
    whatever `n_jobs` and `ray`, and also where a run was killed and taken up again; `trials` counts
    from the first run.

    Args:    candidates: variants with their latency models; those that lose more quality than the
                 SLO allows, or were not measured as far as the workload goes, are left out.
             engine: what the space leaves open; max_num_seqs is then an upper limit.
             space: None is `SearchSpace()`.
             storage: file of the study, SQLite or (`.log`) Optuna's journal; another search in it is
                 kept apart.
             cluster: None is `Cluster()`.
             sampler: `tpe`, `gp` (a Gaussian process; needs torch) or `random`.
             objective: `front` searches for the best of cost against attainment, without racing;
                 `Tuning.front()` is what it finds, and the winner is chosen as ever; where nothing
                 keeps the SLO it is what came nearest, and `Tuning.own_doubts` says so.
             early: end a trial within a day in which it is certain that it clearly breaks the SLO or
                 clearly costs more. The verdicts are the same; how far over it is the sampler learns
                 of the part that was run, so that its next trials may be others.
             n_jobs: processes that simulate; where one dies, its trial has failed.
             ray: address of a Ray cluster whose CPUs simulate, in place of n_jobs ("auto": the one of
                 this host).
             at_once: trials that are asked for together, knowing what came of those before. Results
                 depend on it, unlike on the number of workers, of which more have nothing to do.
             neighbour_seeds: on so many of the unseen seeds are the neighbours of the winner tried, one
                 step in each free parameter; None is all, 0 is no look at them.
             random_baseline: search at random too, as many trials, and put the best beside the other
                 baselines: twice the work.
             force: take latency models that rest on measurements that cannot be trusted; the winner's
                 prediction and result say so in `doubts`.
             simulate: the twin; for n_jobs > 1 it must be a function of a module.
    Raises:  InfeasibleError: nothing keeps the SLO, and the objective is `cost`; says what came
                 nearest and what to change.
             MeasurementError: a latency model with doubts, and no force.
             InputError: candidates twice, seeds missing or for two purposes, or no Ray cluster at that
                 address.
    """
    say = on_progress or (lambda doing, share: None)
    _check(candidates, trials, at_once)
    _check_seeds(seeds=seeds, choice_seeds=choice_seeds, unseen_seeds=unseen_seeds)
    space = SearchSpace() if space is None else space
    _check_variants(candidates, space)
    for candidate in () if force else candidates:
        if candidate.latency.doubts:
            raise MeasurementError(
                f"the latency model of {candidate.variant.name!r} rests on what cannot be trusted:"
                f" {candidate.latency.doubts[0]}",
                remedy="Measure and fit again, or force it.",
            )
    with workers(n_jobs, ray) as run:
        say("sizing the search", 0.0)
        admitted = admit(candidates, workload, slo, engine, space)
        ground = Ground(
            candidates=admitted.candidates,
            engine=engine,
            slo=slo,
            space=space.sized(admitted.peak_replicas, engine, workload),
            gpu_usd_per_hour=gpu_usd_per_hour,
            gpus_per_replica=gpus_per_replica,
        )
        twin = Twin(ground, workload, cluster or Cluster(), simulate, run)

        def job(point: Point, incumbent: tuple[float, ...]) -> Job:
            # A front needs every seed of every trial, or its points could not be compared.
            race = objective == "cost"
            return twin.job(ground.plan_of(point), seeds, incumbent, race=race, early=early)

        def search_by(sampler: Sampler, objective: Objective, first: Sequence[Point]) -> Search:
            how = f"{sampler} {objective}, {at_once} at once" + ("" if first else ", from nothing")
            how += "" if early else ", whole days"
            return Search(
                storage,
                _study_name(twin, seeds, seed, how),
                lambda trial: draw(trial, ground.space, admitted.seqs),
                first=[parameters(point, ground.space, admitted.seqs) for point in first],
                seed=seed,
                sampler=sampler,
                objective=objective,
                at_once=at_once,
            )

        def best_of(tried: Sequence[Trial], *, must_keep: bool) -> Proven:
            return winner(
                tried,
                ground,
                choice_seeds,
                lambda plan, over: twin.scores([plan], over)[0],
                lambda point: twin.scores([ground.plan_of(point)], seeds[:1])[0][0],
                lambda doing: say(doing, _SEARCHED),
                must_keep=must_keep,
            )

        search = search_by(sampler, objective, _start(admitted, ground))
        search.run(trials, job, run=run, on_trial=_teller(say, trials))
        tried = search.trials()
        proven = best_of(tried, must_keep=objective == "cost")
        rivals = []
        if random_baseline:
            at_random = search_by("random", "cost", [])
            at_random.run(trials, job, run=run, on_trial=_at_random(say, trials))
            with suppress(InfeasibleError):  # all of its trials failed
                rival = best_of(at_random.trials(), must_keep=False).plan
                rivals = [rival.model_copy(update={"name": RANDOM})]
        won = proven.plan
        say("who is as good as the article's HPA", _CHOSEN)
        equal = as_good(
            article_of(won, ground.most_replicas),
            proven,
            tried,
            ground,
            choice_seeds,
            lambda plan, over: twin.scores([plan], over)[0],
        )
        rivals += [] if equal is None else [equal]
        say("the winner on unseen traffic", _CHOSEN)
        result = twin.result(won, unseen_seeds)
        around = unseen_seeds[:neighbour_seeds]

        def evaluate(points: Sequence[Point]) -> list[Score]:
            say(f"{len(points)} neighbours of the winner", _PROVEN)
            return scores_of(points, lambda point, _: twin.job(ground.plan_of(point), around), run)

        neighbours = (
            look_around(proven.point, result, tried, ground, admitted.seqs, evaluate)
            if around
            else pd.DataFrame(columns=COLUMNS)
        )
        latency = ground.candidate(won.variant.name).latency
        return Tuning(
            winner=won,
            winner_result=result,
            prediction=predict(won, latency, replay(result, workload)),
            trials=search.table(),
            baselines=baselines(
                won,
                rivals,
                twin,
                unseen_seeds,
                lambda doing, share: say(doing, _AROUND + (1 - _AROUND) * share),
            ),
            rejected=admitted.rejected,
            own_doubts=(proven.doubt,)
            if proven.doubt
            else (*breach(result, slo), *fragile(neighbours)),
            seen=proven.score.metrics,
            seen_seeds=len(proven.score.hours),
            passed_over=proven.passed_over,
            neighbours=neighbours,
        )


def _start(admitted: Admitted, ground: Ground) -> list[Point]:
    """The rules of practice, on the fastest variant."""
    seqs = admitted.seqs[admitted.fastest][0]
    return list(
        first_points(
            ground.space, admitted.fastest, seqs, admitted.peak_replicas, running=admitted.running
        )
    )


def _check(
    candidates: Sequence[Candidate],
    trials: int,
    at_once: int,
) -> None:
    names = [candidate.variant.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"candidates(={names}) must be at least one, each once",
            remedy="Name each variant once.",
        )
    if trials < 1:
        raise InputError(f"trials(={trials}) must be >= 1", remedy="A search takes some 40.")
    if at_once < 1:
        raise InputError(f"at_once(={at_once}) must be >= 1", remedy="4 is usual.")


def _check_seeds(**purposes: Sequence[int]) -> None:
    drawn = [seed for seeds in purposes.values() for seed in seeds]
    if not all(purposes.values()) or len(set(drawn)) < len(drawn):
        said = ", ".join(f"{name}(={tuple(seeds)})" for name, seeds in purposes.items())
        raise InputError(
            f"{said} must have at least one each and none twice",
            remedy="A winner is chosen and judged on traffic that the search has not seen.",
        )


def _check_variants(candidates: Sequence[Candidate], space: SearchSpace) -> None:
    names = {candidate.variant.name for candidate in candidates}
    unknown = sorted(set(space.variants or ()) - names)
    if unknown:
        raise InputError(
            f"variants(={unknown}) of the search space are no candidates",
            remedy=f"Name some of {sorted(names)}.",
        )


def _study_name(
    twin: Twin,
    seeds: Sequence[int],
    seed: int,
    how: str,
) -> str:
    """Searches of anything else must not share trials."""
    parts = [v.model_dump_json() for v in (twin.ground, twin.workload, twin.cluster)] + [
        f"{tuple(seeds)} {seed} {how}"
    ]
    return f"tune-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _at_random(say: OnProgress, trials: int) -> Callable[[int, Score | None], None]:
    return lambda done, found: say(f"at random, {done} of {trials} trials", _SEARCHED)


def _teller(say: OnProgress, trials: int) -> Callable[[int, Score | None], None]:
    """Progress by trials; of what was resumed the best is not known before the next trial."""
    best = float("inf")

    def on_trial(done: int, found: Score | None) -> None:
        nonlocal best
        if found is not None and found.keeps_slo:
            best = min(best, found.metrics["gpu_hours"])
        said = f", best {best:.1f} GPU hours a day" if best < float("inf") else ""
        share = _SIZED + (_SEARCHED - _SIZED) * min(1.0, done / trials)
        say(f"{done} of {trials} trials{said}", share)

    return on_trial
