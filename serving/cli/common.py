"""What the commands share: errors as one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from serving.errors import WorkbenchError
from serving.values import one_line

P = ParamSpec("P")


class Commands(TyperGroup):
    """Commands whose options name the value that they can't take, which typer leaves out."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if isinstance(error.__cause__, ValidationError):
                value = error.__cause__.errors(include_url=False)[0]["input"]
                error.message = f"{value!r}. {error.message}"
            raise


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can mend into one line and exit code 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (WorkbenchError, ValidationError) as error:
            text = one_line(error) if isinstance(error, ValidationError) else str(error)
            typer.echo(f"serving: {' '.join(text.split())}", err=True)
            raise typer.Exit(2) from None

    return run
