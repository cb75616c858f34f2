"""Commands that judge variants which are there, and show what was made of what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import InputError
from workbench.cli.common import DEFAULT_WORKDIR, AsJson, Debug, Workdir, display, guarded, show
from workbench.cli.pipelines import settings_of
from workbench.cli.runs import tell_untracked, track
from workbench.cli.variants import FOLDER, names_in, variant_in, variants_in

if TYPE_CHECKING:
    from serving.plan import Variant
    from workbench.compress.quality import Ask

app = typer.Typer()


@app.command(
    epilog="Examples: workbench compress judge int8-gptq --heldout my-text.jsonl · "
    "workbench compress judge --tasks hellaswag,arc_easy --limit 200"
)
@guarded
def judge(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Variants; all without any.", autocompletion=names_in),
    ] = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    heldout: Annotated[
        Path | None,
        typer.Option(help="JSONL to judge on.", show_default="shipped held-out text"),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="JSONL with question and answer.", show_default="shipped tasks"),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness as well, comma-separated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Samples of each such task.", show_default="all")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder with definitions of such tasks of your own.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge variants that are there, by other text, questions or benchmarks."""
    there = variants_in(workdir)
    chosen = [variant_in(workdir, name) for name in names] if names else list(there.values())
    if not chosen:
        raise InputError(
            f"{workdir} holds no variants", remedy="`workbench compress quantize` makes one."
        )
    ask = _ask(heldout, questions, tasks, limit, include)
    families: dict[str, list[Variant]] = {}
    for variant in chosen:
        families.setdefault(root_of(variant, there).name, []).append(variant)
    for root, family in families.items():
        judge_family(workdir, there[root], family, ask, as_json=as_json)


@app.command(epilog="Example: workbench compress lineage --json")
@guarded
def lineage(
    workdir: Workdir = DEFAULT_WORKDIR, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show which variant was made of which, with size and quality."""
    show_variants(workdir, list(variants_in(workdir).values()), as_json=as_json)


def judge_family(
    workdir: Path, root: Variant, variants: list[Variant], ask: Ask, *, as_json: bool
) -> None:
    """Judge variants against the model that their line began with, track them, show them."""
    from workbench.compress.variants import judged
    from workbench.settings import engine_for_this_machine

    family = [root, *(variant for variant in variants if variant.name != root.name)]
    with display(workdir, f"Judge {len(family)} variants", as_json=as_json) as on_progress:
        found = judged(
            family,
            root,
            ask,
            engine_args=engine_for_this_machine(),
            cache=workdir / FOLDER,
            on_progress=on_progress,
        )
        track(workdir, lambda tracker: [tracker.variant(one) for one in found])
    tell_untracked(workdir)
    show_variants(workdir, found, as_json=as_json)


def show_variants(workdir: Path, variants: list[Variant], *, as_json: bool) -> None:
    """Print the lineage with sizes, quality and notes."""
    from workbench.tables import variant_table

    if not variants and not as_json:
        typer.echo(f"{workdir} holds no variants. Make one: workbench compress quantize int8-gptq")
        return
    settings = settings_of(workdir)
    show(variant_table(variants, settings.slo.max_quality_loss), as_json=as_json)
    if not as_json:
        for variant in variants:
            for note in variant.notes:
                typer.echo(f"{variant.name}: {note}")
        judged_on = {v.quality.judged_on for v in variants if v.quality}
        for text in sorted(judged_on):
            typer.echo(f"judged on {text}")


def root_of(variant: Variant, there: dict[str, Variant]) -> Variant:
    """The model that a variant's line began with."""
    while variant.parent is not None and variant.parent in there:
        variant = there[variant.parent]
    if variant.parent is not None:
        raise InputError(
            f"the parent of {variant.name!r}, {variant.parent!r}, is not in the data directory",
            remedy="Make it there, or give --model.",
        )
    return variant


def _ask(
    heldout: Path | None,
    questions: Path | None,
    tasks: str | None,
    limit: int | None,
    include: Path | None,
) -> Ask:
    """What the options say, with files that can be read."""
    from workbench.compress.harness import check_installed
    from workbench.compress.quality import Ask
    from workbench.model.jsonl import documents_of, tasks_of

    if heldout is not None:
        documents_of(heldout)
    if questions is not None:
        tasks_of(questions)
    benchmarks = tuple(part.strip() for part in (tasks or "").split(",") if part.strip())
    if benchmarks:
        check_installed()
    return Ask(
        text=heldout and heldout.resolve(),
        tasks=questions and questions.resolve(),
        benchmarks=benchmarks,
        limit=limit,
        include=include and include.resolve(),
    )
