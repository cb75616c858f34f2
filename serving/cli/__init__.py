"""The `serving` command: the gateway, and what ops do beside it."""

from __future__ import annotations

import typer

from serving.cli import doctor, gateway, kb, logs, rollout
from serving.cli.common import Commands

app = typer.Typer(
    cls=Commands,
    name="serving",
    help="Serve a chat model: the gateway in front of vLLM, its rollouts, knowledge base and logs.",
    epilog="Start with: serving gateway --replica http://127.0.0.1:8000 --model NAME",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(gateway.app)
app.add_typer(doctor.app)
app.add_typer(kb.app, name="kb")
app.add_typer(logs.app, name="logs")
app.add_typer(rollout.app, name="rollout")


def main() -> None:
    """Entry point of the `serving` command."""
    app()
