"""What the commands share: options, errors as one line, progress and output."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer
from pydantic import ValidationError

from serving.errors import InputError, WorkbenchError
from serving.values import one_line

if TYPE_CHECKING:
    import pandas as pd

    from workbench.progress import OnProgress

P = ParamSpec("P")

Workdir = Annotated[
    Path, typer.Option(help="Data directory: everything that a run writes lands here.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Model = Annotated[
    str | None, typer.Option(help="Local folder or hub id.", show_default="the shipped demo model")
]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.", show_default="0")]
Ttft = Annotated[
    float | None, typer.Option("--ttft-p99", help="SLO: p99 TTFT in seconds.", show_default="0.5")
]
Tpot = Annotated[float | None, typer.Option("--tpot-p99", help="SLO: p99 TPOT in seconds.")]
E2e = Annotated[float | None, typer.Option("--e2e-p99", help="SLO: p99 E2E latency in seconds.")]
PeakRps = Annotated[
    float | None,
    typer.Option(help="Requests a second in the busiest hour.", show_default="4 replicas' worth"),
]
Numbers = Annotated[str | None, typer.Option(help="Comma-separated.")]
DEFAULT_WORKDIR = Path("runs")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can mend into one line and exit code 2, and Ctrl-C into a kept state."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("\nInterrupted. Finished work is kept; the same command goes on.", err=True)
            # Libraries leave threads that would block an ordinary exit.
            leave(130)
        except (WorkbenchError, ValidationError) as error:
            if kwargs.get("debug"):
                raise
            text = one_line(error) if isinstance(error, ValidationError) else str(error)
            typer.echo(f"workbench: {' '.join(text.split())}", err=True)
            leave(2)
        except Exception as error:
            if kwargs.get("debug"):
                raise
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            typer.echo(f"workbench: unexpected {text} (--debug shows where)", err=True)
            leave(1)

    return run


def leave(code: int) -> None:
    """Exit without waiting for threads of libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of a comma-separated option; None where it was left out."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{option}(={text!r}) is not a list of numbers", remedy="Write for example 1,2,4."
        ) from None


@contextmanager
def display(workdir: Path, title: str, *, as_json: bool) -> Iterator[OnProgress]:
    """One piece of work with progress; what libraries print goes to the log of the workdir."""
    from workbench.progress import Stages, quiet

    with (
        quiet(workdir / "logs" / "libraries.log", to_stderr=as_json) as terminal,
        Stages([title], terminal) as stages,
        stages.stage(title) as on_progress,
    ):
        yield on_progress


def show(found: pd.DataFrame, *, as_json: bool) -> None:
    """A table for people, or JSON for programs."""
    from workbench.progress import print_table

    if as_json:
        rows = json.loads(found.to_json(orient="records", double_precision=6))
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table(found)


def tell_doubts(doubts: Iterable[str], how: str = "used although") -> None:
    """Say on standard error why measurements cannot be trusted."""
    for doubt in doubts:
        typer.echo(f"{how}: {doubt}", err=True)
