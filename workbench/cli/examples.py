"""`workbench examples`: the studies that come with the project, and how each is run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from serving.errors import InputError
from workbench.cli.common import AsJson, Debug, guarded

app = typer.Typer()

HOME = Path(__file__).resolve().parents[2] / "experiments"
"""Beside this package, in a checkout and where a wheel was installed alike."""
_COMMAND = re.compile(r"^#\s{3,}((?:workbench|python -m) .+)$")
"""An indented line of the header comment, for what takes more than its file's name."""
_SIMULATED = ("fleet", "idle-share")


@dataclass(frozen=True)
class Example:
    """A declared study: its question, whether it is measured or simulated, and what runs it."""

    name: str
    how: str
    question: str
    command: str
    file: str


@app.command(epilog="Examples: workbench examples · workbench examples --json")
@guarded
def examples(as_json: AsJson = False, debug: Debug = False) -> None:
    """List studies that are ready to run: what each asks, and the command that answers it."""
    found = [example(file) for file in files(HOME)]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    for one in found:
        typer.echo(f"{one.name} ({one.how})\n  {one.question}\n  {one.command}")
    typer.echo("\nWhat is simulated needs neither vLLM nor a GPU.")
    if (HOME / "LOG.md").exists():
        typer.echo(f"What was found: {_near(HOME / 'LOG.md')}")


def files(home: Path) -> list[Path]:
    """The declared studies, those that are measured or searched first.

    Raises:  InputError: none lie there.
    """
    found = [*sorted(home.glob("*.yaml")), *sorted((home / "fleet").glob("*.yaml"))]
    if not found:
        raise InputError(
            f"{home} holds no studies",
            remedy="They are in the folder experiments/ of the project's source: run it from there.",
        )
    return found


def example(file: Path) -> Example:
    """Read what a study declares.

    Raises:  InputError: a file without a question.
    """
    import yaml

    text = file.read_text()
    fields: dict[str, Any] = yaml.safe_load(text)
    question = fields.get("question") or fields.get("study", {}).get("question")
    if not question:
        raise InputError(f"{file} asks no question", remedy="Give it a line `question: ...`.")
    simulated = fields.get("kind") in _SIMULATED or "latency" in fields
    return Example(
        name=file.stem,
        how="simulated" if simulated else "measured",
        question=question,
        command=_command(text, file),
        file=str(_near(file)),
    )


def _command(text: str, file: Path) -> str:
    """The first one in the header comment, with the file where it lies here; else a plain study."""
    header = text.split("\n", 20)
    own = next((match[1] for line in header if (match := _COMMAND.match(line))), None)
    here = shlex.quote(str(_near(file)))
    if own is None:
        return f"workbench study {here}"
    return " ".join(here if Path(word).name == file.name else word for word in own.split())


def _near(file: Path) -> Path:
    """As short as it can be said from here."""
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
