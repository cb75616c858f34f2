"""What does a new replica wait for, and what shortens it? Starts of a vLLM server, in their parts.

    python -m experiments.cold_start [FOLDER] [--out cold_start.html]
    python -m experiments.cold_start FOLDER --measure CHECKPOINT [--engine '{"max_model_len": 4608}']

The second measures first, four starts: without a compile cache, with the one just made, eager, and with
the checkpoint's files out of the file cache. A start that lies in FOLDER is not done again; FOLDER/caches
holds what vLLM compiled, for those that are left.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
import psutil

from serving.plan import EngineArgs, Variant
from serving.values import Value
from simulations import theme
from workbench.measure.coldstart import ColdStartParts
from workbench.measure.engine import ReplicaInfo
from workbench.measure.environment import Environment
from workbench.measure.vllm_server import ServerEngine
from workbench.progress import print_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

RESULTS = Path(__file__).parent / "results" / "h100" / "cold-start"
_CACHES = {"VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton"}
_PARTS = {
    "imports": ("process_s",),
    "engine's processes": ("engine_process_s",),
    "weights": ("load_s",),
    "compile": ("compile_s",),
    "warm-up, CUDA graphs": ("capture_s", "warmup_s"),
    "server, first answer": ("server_s", "first_token_s"),
}
"""As the figure names them, and the fields of ColdStartParts that are summed."""


class Start(Value):
    """One start of a server, and what it found in caches."""

    name: str
    files: Literal["warm", "cold"]
    """Whether the checkpoint's files were in the file cache."""
    compiled: Literal["new", "saved", "eager"]
    """Compiled without a cache, with a saved one, or not at all."""
    variant: Variant
    engine: EngineArgs
    replica: ReplicaInfo
    environment: Environment
    checkpoint_bytes: int
    disk_read_bytes: int
    """From all disks meanwhile."""
    compile_cache_bytes: int
    """That the start left."""


CASES: tuple[tuple[str, Literal["warm", "cold"], Literal["new", "saved", "eager"]], ...] = (
    ("nothing saved", "warm", "new"),
    ("compile cache saved", "warm", "saved"),
    ("eager", "warm", "eager"),
    ("compile cache saved, files cold", "cold", "saved"),
)
"""In this order: the first makes the compile cache of the others."""


def measure_starts(
    variant: Variant, engine: EngineArgs, folder: Path, caches: Path
) -> Iterator[Start]:
    """Start a server once per case that does not lie in the folder yet, and keep its parts there.

    Args:    caches: for what vLLM compiles; emptied before the start that is to find nothing.
    """
    checkpoint = Path(variant.model)
    for name, files, compiled in CASES:
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if path.exists():
            yield Start.read(path)
            continue
        if compiled == "new":
            shutil.rmtree(caches, ignore_errors=True)
            caches.mkdir(parents=True)
        _settle(checkpoint, files)
        chosen = engine.model_copy(update={"enforce_eager": compiled == "eager"})
        variables = {key: str(caches / leaf) for key, leaf in _CACHES.items()}
        before = psutil.disk_io_counters()
        server = ServerEngine(variant, chosen, folder=caches / "logs", environment=variables)
        with server as running:
            replica = running.replica
        after = psutil.disk_io_counters()
        found = Start(
            name=name,
            files=files,
            compiled=compiled,
            variant=variant,
            engine=chosen,
            replica=replica,
            environment=Environment.capture(),
            checkpoint_bytes=_size(checkpoint),
            disk_read_bytes=after.read_bytes - before.read_bytes if before and after else 0,
            compile_cache_bytes=sum(_size(caches / leaf) for leaf in _CACHES.values()),
        )
        found.write(path)
        yield found


def table(starts: Sequence[Start]) -> pd.DataFrame:
    """One row per start: seconds of its parts, in their order, and their sum."""
    rows = []
    for one in starts:
        known = one.replica.cold_start or ColdStartParts()
        seconds = {
            part: sum(getattr(known, name) or 0.0 for name in names)
            for part, names in _PARTS.items()
        }
        rows.append({"start": one.name, **seconds, "total": known.total_s})
    return pd.DataFrame(rows)


def answer(starts: Sequence[Start]) -> str:
    """What each start saves over the first."""
    total_s = {one.name: (one.replica.cold_start or ColdStartParts()).total_s for one in starts}
    first = next(iter(total_s.values()))
    return "\n".join(
        f"{name}: {seconds:.0f} s ({seconds / first - 1:+.0%})" for name, seconds in total_s.items()
    )


def figure(starts: Sequence[Start]) -> go.Figure:
    """A bar per start, its parts one after the other."""
    rows = table(starts)
    names = theme.axis("", autorange="reversed")
    drawn = theme.canvas("What a new replica waits for", theme.axis("seconds"), names)
    for part, look in theme.looks(_PARTS).items():
        drawn.add_bar(
            y=rows["start"], x=rows[part], name=part, orientation="h", marker_color=look.colour
        )
    return drawn.update_layout(barmode="stack")


def read_starts(folder: Path) -> list[Start]:
    """What `measure_starts` left, in the order of `CASES`."""
    found = {one.name: one for one in map(Start.read, folder.glob("*.json"))}
    return [found[name] for name, _, _ in CASES if name in found]


def _settle(checkpoint: Path, files: str) -> None:
    """Bring the checkpoint into the file cache, or ask the kernel to drop it from there."""
    for path in _files(checkpoint):
        with path.open("rb") as opened:
            if files == "cold":
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while opened.read(1 << 26):
                    pass


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def main() -> None:
    """Measure where that is asked, print the parts, and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--measure", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--engine", default="{}", help="JSON of engine arguments")
    parser.add_argument("--out", type=Path, default=Path("cold_start.html"))
    asked = parser.parse_args()
    if asked.measure:
        variant = Variant(name=asked.measure.name.lower(), model=str(asked.measure))
        engine = EngineArgs.model_validate_json(asked.engine)
        for start in measure_starts(variant, engine, asked.folder, asked.folder / "caches"):
            print(f"{start.name}: {start.replica.start_s:.1f} s", flush=True)
    starts = read_starts(asked.folder)
    if not starts:
        parser.error(f"no start lies in {asked.folder}: measure some with --measure CHECKPOINT")
    print_table(table(starts))
    print(answer(starts))
    for environment in sorted({one.environment.describe() for one in starts}):
        print(f"measured on {environment}")
    asked.out.write_text(figure(starts).to_html(include_plotlyjs=True))
    print(f"figure: {asked.out}")


if __name__ == "__main__":
    main()
