"""Declared studies of a fleet, run over one folder: what was done is not done again."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.errors import InputError
from serving.plan import Plan
from simulations.idle import IdleStudy
from simulations.latency import LatencyModel
from simulations.scenarios import Case, FleetStudy
from simulations.studies import (
    Done,
    ModelOf,
    StudyAnswer,
    answer_of,
    answer_of_idle,
    run_case,
    with_cold_start,
)
from workbench.fit.device import assume, card_of
from workbench.measure.model_cost import ModelCost

OnProgress = Callable[[str, float], None]


def answer_study(
    study: FleetStudy | IdleStudy,
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    latency: LatencyModel | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> StudyAnswer:
    """Run what is missing and write study.json.

    Each arm and seed is a file below runs/, with a digest of all that it was made from: one that says
    something else is made again.

    Args:    seeds: None takes the study's own.
             quick: one seed unless they are given, with the study's shortened runs.
             latency: of the plans at the centre, in place of the device card.
             force: go beyond what a measured model was fitted to, and say so.
    Raises:  InputError: a model whose shape is not known, or what `simulate` refuses.
    """
    if isinstance(study, IdleStudy):
        answer = answer_of_idle(study)
    else:
        chosen = tuple(seeds) if seeds is not None else study.seeds[:1] if quick else study.seeds
        models = _with_measured(study, latency)
        cases = study.cases(quick=quick)
        asked = [(case, seed) for case in cases for seed in chosen]
        runs: list[Done] = []
        for case, seed in asked:
            doing = f"{study.name}: {case.name}, seed {seed}"

            def tell(share: float, doing: str = doing) -> None:
                if on_progress is not None:
                    on_progress(doing, (len(runs) + share) / len(asked))

            tell(0.0)
            runs.append(_once(study, case, seed, models, folder, force=force, tell=tell))
        answer = answer_of(study, runs, quick=quick)
    answer.write(folder / "study.json")
    return answer


def _once(
    study: FleetStudy,
    case: Case,
    seed: int,
    models: ModelOf,
    folder: Path,
    *,
    force: bool,
    tell: Callable[[float], None],
) -> Done:
    made_of = [repr(vars(case)), str(seed)]
    made_of.append(with_cold_start(models(case.plan, study.device), case).model_dump_json())
    if case.site is not None:
        made_of.append(models(case.site, case.site_device).model_dump_json())
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:16]
    path = folder / "runs" / f"{case.name}-seed{seed}-{digest}.json"
    if path.exists():
        return Done.read(path)
    done = run_case(case, seed, study.device, models, force=force, on_progress=tell)
    done.write(path)
    return done


def _with_measured(study: FleetStudy, latency: LatencyModel | None) -> ModelOf:
    """Models by device card; a measured one in place of those of the study's own variant."""
    own = study.plan["variant"]["model"]
    cards: dict[tuple[str, str, str], LatencyModel] = {}

    def of(plan: Plan, device: str) -> LatencyModel:
        if latency is not None and plan.variant.model == own:
            return latency
        key = (plan.variant.model, plan.engine.model_dump_json(), device)
        if key not in cards:
            cards[key] = from_card(plan, device)
        return cards[key]

    return of


def from_card(plan: Plan, device: str) -> LatencyModel:
    """The model of a plan's variant assumed from a device card; some shapes lie beside the cards.

    Raises:  InputError: no such card, or a variant of which no config.json is known.
    Source:  configs.json repeats the fields of the config.json of each on the Hugging Face hub.
    """
    name = plan.variant.model
    known = importlib.resources.files("workbench.fit").joinpath("configs.json").read_text()
    config = json.loads(known).get(name)
    cost = ModelCost.of(plan.variant, plan.engine)
    if cost is None and config is not None:
        cost = ModelCost.of_config(config, plan.engine)
    if cost is None:
        raise InputError(
            f"the shape of model(={name!r}) is not known",
            remedy="Name a folder with its config.json, or give a measured model (--latency).",
        )
    return assume(card_of(device), cost, plan.engine, variant=plan.variant.name)
