"""The `workbench` command: the composition root, the one package that may know every other.

Nothing heavy is imported before a command runs, so that `workbench --help` answers at once.
"""

from __future__ import annotations

import typer

from serving.cli.common import Commands
from workbench.cli import (
    compressing,
    doctor,
    examples,
    fidelity,
    measuring,
    models,
    payoff,
    questions,
    runs,
    serve,
    stages,
)
from workbench.cli.common import guarded

__all__ = ["app", "guarded", "main"]

app = typer.Typer(
    cls=Commands,
    name="workbench",
    help="Measure, simulate, tune and export LLM serving: from a model to a verified plan.",
    epilog="Start with: workbench demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(stages.app)
app.add_typer(models.app, name="model")
app.add_typer(compressing.app, name="compress")
app.add_typer(measuring.app)
app.add_typer(questions.app)
app.add_typer(fidelity.app)
app.add_typer(payoff.app)
app.add_typer(runs.app)
app.add_typer(serve.app)
app.add_typer(doctor.app)
app.add_typer(examples.app)


def main() -> None:
    """Entry point of the `workbench` command."""
    app()
