"""`logs`: questions to the gateway's logs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.common import guarded
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.logs_report import ErrorGroup, LogReport

_BIG_BYTES = 2**24
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN_PLACES = 3

app = typer.Typer(no_args_is_help=True, help="Questions to the gateway's logs.")


@app.command(
    epilog="Examples: serving logs errors gateway.log · serving logs errors old.log.gz gateway.log"
    " --since 2h --top 5 · kubectl logs -l app=gateway | serving logs errors - --json"
)
@guarded
def errors(
    files: Annotated[
        list[str], typer.Argument(help="JSON lines, packed with gzip or not; - is standard input.")
    ],
    since: Annotated[
        str | None,
        typer.Option(help="Leave out what is older: 30m, 2h, 7d, or a time (2026-11-26T15:00Z)."),
    ] = None,
    top: Annotated[int, typer.Option(help="How many kinds of errors to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """The most frequent errors: how many, since when, on which tracks and replicas."""
    from serving.log_lines import lines, size_bytes
    from serving.logs_report import report

    if top < 1:
        raise InputError(f"--top(={top}) shows nothing", remedy="Use at least 1.")
    if files.count("-") > 1:
        raise InputError("- is given twice", remedy="Standard input is read once.")
    start = None if since is None else since_of(since, datetime.now(UTC))
    with _progress(size_bytes(files)) as on_progress:
        found = report(lines(files, on_progress), since=start, top=top)
    if as_json:
        typer.echo(json.dumps(found.model_dump(), indent=2))
    else:
        show(found)


def since_of(text: str, now: datetime) -> datetime:
    """The time that `2h` or an ISO 8601 time means.

    Raises:  InputError: neither.
    """
    try:
        if span := re.fullmatch(r"(\d+)([smhd])", text):
            return now - timedelta(seconds=int(span[1]) * _UNITS_S[span[2]])
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InputError(
            f"--since(={text!r}) is no time", remedy="Write 30m, 2h, 7d or 2026-11-26T15:00Z."
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def show(found: LogReport) -> None:
    """A table, and one line that sums up."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 240
    if found.groups:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column, justify in (("count", "right"), ("share", "right"), ("error", "left")):
            table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for column in ("first", "last", "tracks", "replicas", f"per {_span(found.bucket_s)}"):
            table.add_column(column, no_wrap=column.startswith("per"))
        for group in found.groups:
            share = "" if group.share is None else f"{group.share:.2%}"
            error = Text(group.type, style="bold") + Text(f": {group.message}", style="not bold")
            table.add_row(f"{group.count:,}", share, error, *_when_and_where(group))
        console.print(table)
    typer.echo(summary(found))


def summary(found: LogReport) -> str:
    """One line: how many errors of how many requests, and what was left out."""
    told = f"{found.errors:,} errors, {found.requests:,} requests in {found.lines:,} lines"
    shown = sum(group.count for group in found.groups)
    if shown < found.errors:
        told += f"; {found.errors - shown:,} errors of other kinds not shown"
    if found.foreign:
        told += f"; {found.foreign:,} lines are no ECS JSON and were skipped"
    return told + "."


def _when_and_where(group: ErrorGroup) -> tuple[str, str, str, str, str]:
    return (
        group.first[:19].replace("T", " "),
        group.last[:19].replace("T", " "),
        _places(group.tracks),
        _places(group.replicas),
        group.sparkline,
    )


def _places(counts: dict[str, int]) -> str:
    shown = [f"{place} {count:,}" for place, count in list(counts.items())[:_SHOWN_PLACES]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more else "")


def _span(seconds: int) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.3g} {unit}"
    return f"{seconds} s"


@contextmanager
def _progress(total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error for what takes a while, where somebody looks."""
    if not sys.stderr.isatty() or (total_bytes is not None and total_bytes < _BIG_BYTES):
        yield lambda read_bytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=total_bytes)
        yield lambda read_bytes: progress.update(task, completed=read_bytes)
