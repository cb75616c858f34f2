"""`workbench doctor`: the check-list, on this machine and for a bundle."""

from __future__ import annotations

import typer

from serving.cli.doctor import EXAMPLES, AsJson, Folder, check
from workbench.cli.common import Debug, guarded, leave

app = typer.Typer()


@app.command(epilog=f"Examples: {EXAMPLES.format('workbench')}")
@guarded
def doctor(folder: Folder = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Will it run here? GPUs, memory, cold start, limits, versions, pins; exit code 1 where one fails."""
    if check(folder, as_json=as_json):
        leave(1)
