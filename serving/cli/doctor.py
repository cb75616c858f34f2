"""`doctor`: will it run here? The same command for who has the workbench and who has a bundle only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.common import guarded

if TYPE_CHECKING:
    from serving.doctor import Finding

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[DIR]", help="An exported bundle; without it the machine only."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]
EXAMPLES = "{0} doctor · {0} doctor runs/export/bundle · {0} doctor bundle --json"
_MARKS = {"pass": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}

app = typer.Typer()


def check(folder: Path | None, *, as_json: bool) -> int:
    """Print what stands for and against running here.

    Returns: the exit code: 1 where something fails.
    Raises:  BundleError: no bundle, or one that cannot be read.
    """
    from serving.doctor import diagnose, verdict

    findings = diagnose(folder)
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        found = [finding.model_dump() for finding in findings]
        typer.echo(
            json.dumps(
                {"ready": not failed, "verdict": verdict(findings), "findings": found}, indent=2
            )
        )
    else:
        show(findings)
        typer.echo(verdict(findings))
    return int(failed)


def show(findings: Sequence[Finding]) -> None:
    """One line each, folded to the terminal; what to do stands below what it is about."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.says)
        if finding.remedy:
            text.append(f" → {finding.remedy}", style="italic")
        table.add_row(Text(finding.status, style=_MARKS[finding.status]), finding.name, text)
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    # A file or a pipe gets whole lines, and none that is filled up to the longest.
    console.width = 4000
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


@app.command(epilog=f"Examples: {EXAMPLES.format('serving')}")
@guarded
def doctor(folder: Folder = None, as_json: AsJson = False) -> None:
    """Will it run here? GPUs, memory, cold start, limits, versions, pins; exit code 1 where one fails."""
    raise typer.Exit(check(folder, as_json=as_json))
