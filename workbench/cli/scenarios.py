"""What `workbench study` does with studies of a fleet: simulate, judge, and say the answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.errors import InputError
from workbench.cli.common import display, show, tell_doubts

if TYPE_CHECKING:
    from simulations.studies import StudyAnswer

Quick = Annotated[
    bool,
    typer.Option("--quick", help="Of a fleet: one seed and shortened runs, for a first look."),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, help="Of a fleet: so many seeds, from 0.", show_default="the study's"),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Of a fleet: a folder per study lands here.", show_default="WORKDIR/studies"),
]
Latency = Annotated[
    Path | None,
    typer.Option(
        help="Of a fleet: a fitted latency model (JSON).", show_default="the study's device card"
    ),
]
BeyondFit = Annotated[
    bool,
    typer.Option("--force", help="Of a fleet: go beyond what the latency model was fitted to."),
]
_KINDS = ("fleet", "idle-share")


def is_of_fleet(file: Path) -> bool:
    """Whether a file declares what is simulated; what cannot be read is refused elsewhere."""
    import yaml

    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and found.get("kind") in _KINDS


def refuse_options(given: Mapping[str, object], why: str) -> None:
    """Options that would be without effect."""
    for option, value in given.items():
        if value not in (None, False):
            raise InputError(f"{option} has no effect where {why}", remedy=f"Leave {option} out.")


def answer_studies(
    files: list[Path],
    *,
    workdir: Path,
    out: Path | None,
    quick: bool,
    seeds: int | None,
    latency: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run each, write study.json and index.html, and print the table and the answer."""
    from simulations.latency import LatencyModel
    from simulations.scenarios import read_scenario
    from workbench.report.scenario_figures import scenario_page
    from workbench.studies import answer_study

    studies = [read_scenario(file) for file in files]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise InputError(f"files are studies of the same name: {names}", remedy="Rename one.")
    measured = None if latency is None else LatencyModel.load(latency)
    answers: list[StudyAnswer] = []
    for study in studies:
        folder = (out or workdir / "studies") / study.name
        with display(workdir, f"Study {study.name}", as_json=as_json) as on_progress:
            found = answer_study(
                study,
                folder,
                seeds=None if seeds is None else range(seeds),
                quick=quick,
                latency=measured,
                force=force,
                on_progress=on_progress,
            )
            page = scenario_page(found, folder / "index.html")
        answers.append(found)
        if not as_json:
            show(found.frame(), as_json=False)
            typer.echo(f"\n{found.answer}\nfigures  {page}\n")
    if as_json:
        typer.echo("[" + ",\n".join(found.model_dump_json(indent=2) for found in answers) + "]")
    tell_doubts(dict.fromkeys(doubt for found in answers for doubt in found.doubts), "assumed")
