"""`workbench payoff`: make variants, judge them, measure them all, and say where each pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import InputError
from workbench.cli.common import (
    DEFAULT_WORKDIR,
    AsJson,
    Debug,
    Model,
    Workdir,
    display,
    guarded,
    leave,
    show,
    tell_doubts,
)
from workbench.cli.loads import RayAddress, indices
from workbench.cli.pipelines import settings_of
from workbench.cli.runs import tell_untracked, track
from workbench.cli.variants import FOLDER

if TYPE_CHECKING:
    from workbench.compress.recipe import Recipe
    from workbench.measure.study import StudyResult
    from workbench.track import Tracker

app = typer.Typer()


@app.command(
    epilog="Examples: workbench payoff experiments/payoff-cpu.yaml · "
    "workbench payoff experiments/payoff.yaml --model meta-llama/Llama-3.1-8B-Instruct"
)
@guarded
def payoff(
    file: Annotated[Path, typer.Argument(help="Recipes and a study, as YAML.")],
    workdir: Workdir = DEFAULT_WORKDIR,
    model: Model = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Price of a GPU or machine.", show_default="the file's"),
    ] = None,
    skip: Annotated[
        bool, typer.Option("--skip-unsupported", help="Leave out what this machine cannot serve.")
    ] = False,
    gpus: Annotated[
        str | None, typer.Option(help="Indices of this host's GPUs.", show_default="all")
    ] = None,
    ray: RayAddress = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure again what failed before.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Which compression pays, at which load, at what cost in quality; goes on after a crash."""
    from workbench.compress import compress
    from workbench.compress.recipe import is_snapshot
    from workbench.measure.spread import Where
    from workbench.measure.study import run_study
    from workbench.payoff import Payoff, Question
    from workbench.report.payoff_figures import payoff_page
    from workbench.tables import payoff_table

    asked = Question.load(file)
    settings = settings_of(workdir, model=model)
    recipes = _supported(asked.recipes, skip=skip)
    folder = workdir / "studies" / asked.study.name
    with display(workdir, f"Make and judge {len(recipes)} variants", as_json=as_json) as say:
        variants = compress(
            settings.model_path(),
            workdir / FOLDER,
            engine_args=asked.study.engine,
            recipes=recipes,
            ask=settings.ask,
            on_progress=say,
        )
    # Students on the way are judged, but as fast as the last one.
    measured = [variant for variant in variants if not is_snapshot(variant)]
    with display(workdir, f"Study {asked.study.name}", as_json=as_json) as say:
        result = run_study(
            asked.study,
            measured,
            folder=folder,
            where=Where(ray=ray, gpus=indices(gpus)),
            retry_failed=retry_failed,
            on_progress=say,
        )
        found = Payoff.of(
            result,
            variants,
            usd_per_hour=asked.usd_per_hour if usd_per_hour is None else usd_per_hour,
            max_quality_loss=settings.slo.max_quality_loss,
        )
        found.write(folder)
        page = payoff_page(found, result, folder / f"{asked.study.name}.html")

        def log(tracker: Tracker) -> None:
            for variant in variants:
                tracker.variant(variant)
            tracker.study(result, folder, page)

        track(workdir, log)
    tell_untracked(workdir)
    show(payoff_table(found), as_json=as_json)
    _tell(result)
    if not as_json:
        typer.echo(f"\n{found.words()}\n\nfigures  {page}")
    if result.failures:
        leave(1)


def _supported(recipes: tuple[Recipe, ...], *, skip: bool) -> list[Recipe]:
    """The recipes that this machine can serve; what goes on from one that it cannot falls as well."""
    from workbench.compress.recipe import check

    kept: list[Recipe] = []
    dropped: set[str] = set()
    for recipe in recipes:
        try:
            if recipe.begins_with in dropped:
                raise InputError(
                    f"{recipe.name} goes on from {recipe.begins_with}", remedy="Leave both out."
                )
            check([recipe])
        except InputError as error:
            if not skip:
                raise InputError(
                    f"{recipe.name}: {error.problem}",
                    remedy="Leave it out of the file, or add --skip-unsupported.",
                ) from error
            dropped.add(recipe.name)
            typer.echo(f"left out: {recipe.name}: {error.problem}", err=True)
        else:
            kept.append(recipe)
    return kept


def _tell(result: StudyResult) -> None:
    for failure in result.failures:
        typer.echo(f"failed: {failure.name}: {failure.cause}", err=True)
    tell_doubts([f"{m.name}: {why}" for m in result.measurements for why in m.invalid], "left out")
