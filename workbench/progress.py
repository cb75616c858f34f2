"""What the user sees while a pipeline runs: each stage, its elapsed time, and what is being done.

On a terminal a live list with a bar; elsewhere (CI, a pipe, a notebook's log) plain lines. What the
libraries underneath print (vLLM, llmcompressor, and their C++ parts) goes to a log file, by descriptor,
so that it neither hides the display nor gets lost.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the share that is done, 0 to 1."""

_WIDEST = 400
_PLAIN_EVERY_S = 5.0


@contextmanager
def quiet(log: Path, *, to_stderr: bool = False) -> Iterator[IO[str]]:
    """Send this process's standard output and error, and its children's, to a log file.

    In a notebook too: `with quiet(folder / "libraries.log"): ...`; widgets such as `bar` are still seen.

    Yields a stream that still reaches what was standard output, or standard error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    # Only this stream may keep the user's terminal: children must not inherit it.
    terminal = os.fdopen(os.dup(saved[to_stderr]), "w", buffering=1)
    with log.open("ab") as target, _kernel_streams(log):
        try:
            for descriptor in (1, 2):
                os.dup2(target.fileno(), descriptor)
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
            terminal.close()


@contextmanager
def _kernel_streams(log: Path) -> Iterator[None]:
    """The same for a Jupyter kernel's sys.stdout and sys.stderr, which write to no descriptor.

    A library keeps the stream that it finds when it is imported, so the log stays open.
    """
    if "ipykernel" not in type(sys.stdout).__module__:
        yield
        return
    kept = log.open("a", buffering=1)
    with redirect_stdout(kept), redirect_stderr(kept):
        yield


class Stages:
    """A list of named stages, run one after the other.

    Args:    names: the stages in order.
             stream: where to show them (see `quiet`).
    """

    def __init__(self, names: Sequence[str], stream: IO[str] | None = None) -> None:
        self.console = Console(file=stream or sys.stdout)
        self.names = list(names)
        self.seconds: dict[str, float] = {}
        self._current: str | None = None
        self._began_s = 0.0
        self._doing = ""
        self._share = 0.0
        self._last_plain = ("", 0.0)
        self._live = Live(
            get_renderable=self._render, console=self.console, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> Stages:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[OnProgress]:
        """Run one stage; yields the callback to report progress to."""
        self._current, self._began_s = name, time.monotonic()
        self._doing, self._share, self._last_plain = "", 0.0, ("", 0.0)
        self._plain("...")
        try:
            yield self.report
            self.seconds[name] = time.monotonic() - self._began_s
            self._plain(f"done in {self.seconds[name]:.1f} s")
        finally:
            self._current = None

    def report(self, doing: str, share: float) -> None:
        """What is being done now, and the share of the stage that is done."""
        self._doing, self._share = doing, min(max(share, 0.0), 1.0)
        head, last_s = self._last_plain
        now_s = time.monotonic()
        if now_s - last_s > _PLAIN_EVERY_S and doing != head:
            self._last_plain = (doing, now_s)
            self._plain(f"{doing} ({share:.0%}, {now_s - self._began_s:.0f} s)")

    def _plain(self, text: str) -> None:
        if not self.console.is_terminal:
            number = self.names.index(self._current or "") + 1
            line = f"[{number}/{len(self.names)}] {self._current}: {text}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for number, name in enumerate(self.names, 1):
            label = Text(f"{number}. {name}")
            mark: Any
            if name in self.seconds:
                mark, took = Text("✓", style="green"), f"{self.seconds[name]:.1f} s"
            elif name == self._current:
                mark, took = (
                    Spinner("dots", style="cyan"),
                    f"{time.monotonic() - self._began_s:.0f} s",
                )
                label.stylize("bold")
            else:
                mark, took = Text("·", style="dim"), ""
                label.stylize("dim")
            running = name == self._current
            bar = ProgressBar(total=1.0, completed=self._share, width=20) if running else Text("")
            doing = Text(self._doing, overflow="ellipsis", no_wrap=True) if running else Text("")
            table.add_row(mark, label, Text(took, justify="right"), bar, doing)
        return Group(table)


def bar() -> OnProgress:
    """A bar that stages report to: `on_progress=bar()`, a widget in a notebook, a line elsewhere."""
    from tqdm.auto import tqdm

    shown = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar}| {elapsed} {desc}")

    def report(doing: str, share: float) -> None:
        shown.set_description_str(doing, refresh=False)
        shown.n = min(max(share, 0.0), 1.0)
        shown.refresh()
        if share >= 1.0:
            shown.close()

    return report


def print_table(table: pd.DataFrame) -> None:
    """Print a data frame as a table that fits the terminal; into a file or pipe unfolded."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in table.columns:
        numeric = table[name].dtype.kind in "fi"
        shown.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(_cell(value) for value in row))
    console = Console()
    if not console.is_terminal:
        console.width = _WIDEST
    console.print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if value != value else f"{value:,.4g}"
    return str(value)
