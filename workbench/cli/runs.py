"""Commands on what is tracked: list runs of MLflow, add to it what only lies on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import InputError
from workbench.cli.common import DEFAULT_WORKDIR, AsJson, Debug, Workdir, display, guarded, show

if TYPE_CHECKING:
    import pandas as pd

    from workbench.track import Tracker

app = typer.Typer()

_KINDS = (
    *("pipeline", "compress", "measure", "sweep", "fit", "candidate", "tune", "export", "verify"),
    *("study", "compare", "capacity"),
)
_LONGEST_CELL = 40


def _studies(ctx: typer.Context) -> list[str]:
    """Names of the studies in the data directory, for completion."""
    workdir = Path(ctx.params.get("workdir") or DEFAULT_WORKDIR)
    heads = [path for depth in ("", "*/", "*/*/") for path in workdir.glob(f"{depth}study.json")]
    return sorted({json.loads(path.read_text()).get("name", "") for path in heads})


@app.command(
    epilog="Examples: workbench runs --stage measure --sort -output_tokens_per_s · "
    "workbench runs --filter \"metrics.ttft_p99_s < 0.2 and params.variant = 'int8'\""
)
@guarded
def runs(
    workdir: Workdir = DEFAULT_WORKDIR,
    stage: Annotated[
        str | None,
        typer.Option(help=f"Only {', '.join(_KINDS)}.", autocompletion=lambda: list(_KINDS)),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Only runs of this study.", autocompletion=_studies)
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="In MLflow's syntax: metrics., params., tags.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="Column; behind - from the largest down.", show_default="newest first"),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Comma-separated.", show_default="by kind")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0 is all.")] = 20,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List runs of MLflow: those of the data directory, or of MLFLOW_TRACKING_URI."""
    if stage is not None and stage not in _KINDS:
        raise InputError(
            f"--stage(={stage!r}) is not a kind of run", remedy=f"Choose of {', '.join(_KINDS)}."
        )
    from rich.console import Console

    with Console(stderr=True).status("Reading the runs"):
        from workbench.runs import choose
        from workbench.track import chosen_uri, list_runs, reached

        uri = chosen_uri(workdir)
        with reached(uri):
            found = list_runs(
                workdir,
                stage=stage,
                study=study,
                condition=filter_,
                # What is to be sorted has to be known whole.
                limit=limit or None if sort is None else None,
            )
        names = [name.strip() for name in columns.split(",")] if columns else []
        chosen = choose(
            found,
            stage=stage,
            columns=names or (list(found.columns) if as_json else ()),
            sort=sort,
            limit=limit or None,
        )
    if found.empty:
        typer.echo(
            f"No such runs in {uri}. `workbench log --workdir {workdir}` adds what lies on disk;"
            " `workbench demo` measures.",
            err=True,
        )
    if as_json:
        show(chosen, as_json=True)
    elif not found.empty:
        show(_short(chosen), as_json=False)


@app.command(
    epilog="Examples: workbench log --workdir runs · "
    "workbench log experiments/results/h100 --workdir runs"
)
@guarded
def log(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Results that lie elsewhere.", show_default="the data directory"),
    ] = None,
    workdir: Workdir = DEFAULT_WORKDIR,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Add to MLflow what lies in a data directory, or in another folder, and is not there yet."""
    if folder is None and not workdir.is_dir():
        raise InputError(f"--workdir(={str(workdir)!r}) is not there", remedy="Check the path.")
    with display(workdir, "Log to MLflow", as_json=as_json) as on_progress:
        from workbench.runs import log_everything
        from workbench.track import chosen_uri, reached

        uri = chosen_uri(workdir)
        with reached(uri):
            store = None if folder is None else workdir
            done = log_everything(folder or workdir, on_progress, store=store)
    for line in done.unreadable:
        typer.echo(f"left out: {line}", err=True)
    if as_json:
        said = {"store": uri, "added": done.added, "there": done.known}
        typer.echo(json.dumps(said | {"unreadable": list(done.unreadable)}))
    else:
        typer.echo(f"{done.added} runs added, {done.known} were there: {uri}")


def track(workdir: Path, log: Callable[[Tracker], object]) -> None:
    """Leave a trail; a store that fails costs one line."""
    from workbench.track import Tracker, attempt

    with attempt(workdir):
        log(Tracker(workdir))


def tell_untracked(workdir: Path) -> None:
    """Say on standard error, in one line, that results are not all in MLflow, if so."""
    try:
        said = (workdir / "untracked.txt").read_text()
    except OSError:
        return
    typer.echo(said.strip(), err=True)


def _short(table: pd.DataFrame) -> pd.DataFrame:
    """Reasons and questions may be long; --json has them whole."""
    return table.map(
        lambda cell: (
            f"{cell[: _LONGEST_CELL - 1]}…"
            if isinstance(cell, str) and len(cell) > _LONGEST_CELL
            else cell
        )
    )
