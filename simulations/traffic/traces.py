"""Recorded traffic from its original files, as one value.

    azure       TIMESTAMP, ContextTokens, GeneratedTokens (2023, 2024, 2025 with NumImages), CSV
    burstgpt    Timestamp in seconds, Request tokens, Response tokens (v1; v3 with Session ID), CSV
    vidur       arrived_at in seconds, num_prefill_tokens, num_decode_tokens, CSV
    mooncake    timestamp in ms, input_length, output_length, hash_ids of 512 tokens, JSON lines
    bailian     timestamp in s, the same names, hash_ids of 16 tokens and chat ids, JSON lines
    servegen    a client's rates and laws per 10 minutes (CSV) with its length histograms (JSON beside
                it): drawn, not recorded; prompt and output independently
    parquet     arrived_at, prompt_tokens, output_tokens; where known hash_ids (block_size in the
                schema's metadata)

A request of 0 tokens counts as one of 1: nothing else can be asked of a server.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import gamma
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serving.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
_SERVEGEN_COLUMNS = 6
_BEFORE_GAPS = 200


@dataclass(frozen=True)
class Trace:
    """Recorded requests, sorted by arrival (those of one time stamp as in the file).

    Attributes:
        arrived_at_s: (n,), from the first request.
        prompt_tokens, output_tokens: (n,), at least 1.
        blocks: per request the ids of its prompt's blocks, chained: equal ids are equal prefixes.
        block_tokens: tokens of a whole block; the last of a prompt may be partial.
    """

    arrived_at_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    blocks: tuple[IntArray, ...] | None = None
    block_tokens: int = 0

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    def take(self, chosen: npt.NDArray[Any]) -> Trace:
        """Some of the requests."""
        return replace(
            self,
            arrived_at_s=self.arrived_at_s[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            blocks=None if self.blocks is None else tuple(self.blocks[i] for i in chosen),
        )

    def spread(self, rng: np.random.Generator) -> Trace:
        """Requests of one time stamp uniformly up to the next; the last as far as the median tick."""
        ticks, tick = np.unique(self.arrived_at_s, return_inverse=True)
        if len(ticks) < 2:
            return self
        width = np.append(np.diff(ticks), np.median(np.diff(ticks)))
        offsets = rng.random(len(self))
        # Sorted within each tick, so that the order of the file is kept.
        offsets = offsets[np.lexsort((offsets, tick))]
        at_s = ticks[tick] + offsets * width[tick]
        return replace(self, arrived_at_s=at_s)

    def window(self, start_s: float, length_s: float | None) -> Trace:
        """The requests of a window, times from its begin.

        Raises:  InputError: nobody arrives in it.
        """
        end_s = np.inf if length_s is None else start_s + length_s
        inside = np.flatnonzero((self.arrived_at_s >= start_s) & (self.arrived_at_s < end_s))
        if not len(inside):
            raise InputError(
                f"the window start_s(={start_s:g}), length_s(={length_s}) of the trace is empty",
                remedy=f"The trace is {self.arrived_at_s[-1]:.0f} s long.",
            )
        chosen = self.take(inside)
        return replace(chosen, arrived_at_s=chosen.arrived_at_s - start_s)

    def played(
        self,
        speedup: float,
        length_divisor: float,
        max_prompt_tokens: int | None,
        max_output_tokens: int | None,
    ) -> Trace:
        """Faster, and with shorter prompts and outputs (divided, rounded up, then cut)."""
        prompt = np.ceil(self.prompt_tokens / length_divisor).astype(np.int64)
        output = np.ceil(self.output_tokens / length_divisor).astype(np.int64)
        return replace(
            self,
            arrived_at_s=self.arrived_at_s / speedup,
            prompt_tokens=prompt
            if max_prompt_tokens is None
            else prompt.clip(max=max_prompt_tokens),
            output_tokens=output
            if max_output_tokens is None
            else output.clip(max=max_output_tokens),
            block_tokens=int(np.ceil(self.block_tokens / length_divisor)),
        )

    def segments(self) -> tuple[tuple[tuple[int, int], ...], ...] | None:
        """Each prompt as (block id, tokens), see `Schedule`; None where no blocks are known."""
        if self.blocks is None:
            return None
        return tuple(
            _cut(blocks, int(prompt), self.block_tokens)
            for blocks, prompt in zip(self.blocks, self.prompt_tokens, strict=True)
        )


def _cut(blocks: IntArray, prompt_tokens: int, block_tokens: int) -> tuple[tuple[int, int], ...]:
    n = min(len(blocks), -(-prompt_tokens // block_tokens))
    last = prompt_tokens - (n - 1) * block_tokens
    whole = ((int(block), block_tokens) for block in blocks[: n - 1])
    return (*whole, (int(blocks[n - 1]), last))


def read_trace(
    path: Path | str, format: str = "auto", *, seed: int = 0, sha256: str | None = None
) -> Trace:
    """Read a trace in its original format.

    Args:    format: one of FORMATS; "auto" looks into the file.
             seed: of a format that is drawn.
             sha256: what the file's digest must be.
    Raises:  InputError: no such file, another one, an unknown format, or a row that cannot be read.
    """
    path = Path(path).expanduser()
    if sha256 is not None and digest(path) != sha256:
        raise InputError(
            f"{path} is another file than the one that was chosen (sha256 {sha256[:12]}...)",
            remedy="Restore it, or make the workload again.",
        )
    return _read(str(path), format, seed, _stamp(path))


@lru_cache(maxsize=8)
def _read(path: str, format: str, seed: int, stamp: tuple[int, int]) -> Trace:
    name = _detect(Path(path)) if format == "auto" else format
    if name not in FORMATS:
        raise InputError(
            f"format(={name!r}) is not known", remedy=f"Use one of {', '.join(sorted(FORMATS))}."
        )
    trace = FORMATS[name](Path(path), seed)
    if not len(trace):
        raise InputError(f"{path} holds no request", remedy="Choose another file.")
    order = np.argsort(trace.arrived_at_s, kind="stable")
    ordered = trace.take(order)
    return replace(
        ordered,
        arrived_at_s=ordered.arrived_at_s - ordered.arrived_at_s[0],
        prompt_tokens=ordered.prompt_tokens.clip(min=1),
        output_tokens=ordered.output_tokens.clip(min=1),
    )


def digest(path: Path | str) -> str:
    """SHA-256 of a file's content.

    Raises:  InputError: no such file.
    """
    path = Path(path).expanduser()
    stamp = _stamp(path)
    return _digest(str(path), stamp)


@lru_cache(maxsize=64)
def _digest(path: str, stamp: tuple[int, int]) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f"cannot read the trace {path} ({error.strerror})", remedy="Check the path."
        ) from error
    return status.st_size, status.st_mtime_ns


def _detect(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
        first = (head + file.readline()).decode(errors="replace").strip()
    if head == b"PAR1":
        return "parquet"
    if first.startswith("{"):
        return "bailian" if "chat_id" in first else "mooncake"
    columns = set(first.split(","))
    for name, needed in _CSV_COLUMNS.items():
        if set(needed) <= columns:
            return name
    if first.count(",") == _SERVEGEN_COLUMNS - 1 and first.split(",")[0].replace(".", "").isdigit():
        return "servegen"
    raise InputError(
        f"{path} is no trace that is known: it begins with {first[:60]!r}",
        remedy=f"Formats are {', '.join(sorted(FORMATS))}.",
    )


_CSV_COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
}


def _csv(name: str) -> Callable[[Path, int], Trace]:
    """A reader of CSV with a header: time, prompt and output by their columns."""

    def read(path: Path, seed: int) -> Trace:
        table = pd.read_csv(path, dtype=str, skip_blank_lines=False).dropna(how="all")
        time, prompt, output = _CSV_COLUMNS[name]
        missing = {time, prompt, output} - set(table.columns)
        if missing:
            raise InputError(
                f"{path} has no column {sorted(missing)}", remedy=f"Is it of format {name!r}?"
            )
        if name == "azure":
            stamps = pd.to_datetime(table[time], format="ISO8601", utc=True, errors="coerce")
            at_s = (stamps - stamps.min()).dt.total_seconds()
        else:
            at_s = pd.to_numeric(table[time], errors="coerce")
        numbers = {
            time: at_s,
            prompt: pd.to_numeric(table[prompt], errors="coerce"),
            output: pd.to_numeric(table[output], errors="coerce"),
        }
        for column, values in numbers.items():
            _refuse_broken(path, table, column, values)
        return Trace(
            np.asarray(at_s, dtype=np.float64),
            numbers[prompt].to_numpy(dtype=np.int64),
            numbers[output].to_numpy(dtype=np.int64),
        )

    return read


def _refuse_broken(path: Path, table: pd.DataFrame, column: str, values: pd.Series) -> None:
    broken = values.index[values.isna() | (values < 0)]
    if len(broken):
        row = broken[0]
        raise InputError(
            f"{path}, line {row + 2}: {column}(={table.loc[row, column]!r}) is no number >= 0",
            remedy="Mend or remove the line.",
        )


def _json_lines(block_tokens: int, per_s: float) -> Callable[[Path, int], Trace]:
    """A reader of JSON lines with timestamp, input_length, output_length and hash_ids."""

    def read(path: Path, seed: int) -> Trace:
        rows: list[Mapping[str, Any]] = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                float(row["timestamp"]), int(row["input_length"]), int(row["output_length"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}, line {number}: {line[:60]!r} is no request"
                    f" ({type(error).__name__}: {error})",
                    remedy="Mend or remove the line.",
                ) from error
            rows.append(row)
        known = all(row.get("hash_ids") for row in rows)
        return Trace(
            np.array([float(row["timestamp"]) / per_s for row in rows], dtype=np.float64),
            np.array([row["input_length"] for row in rows], dtype=np.int64),
            np.array([row["output_length"] for row in rows], dtype=np.int64),
            tuple(np.array(row["hash_ids"], dtype=np.int64) for row in rows) if known else None,
            block_tokens if known else 0,
        )

    return read


def _parquet(path: Path, seed: int) -> Trace:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = {"arrived_at", "prompt_tokens", "output_tokens"} - set(table.column_names)
    if missing:
        raise InputError(
            f"{path} has no column {sorted(missing)}",
            remedy="It needs arrived_at (s), prompt_tokens and output_tokens.",
        )
    said = table.schema.metadata or {}
    blocks = None
    if "hash_ids" in table.column_names:
        blocks = tuple(
            np.asarray(ids, dtype=np.int64)
            for ids in table["hash_ids"].to_numpy(zero_copy_only=False)
        )
    return Trace(
        table["arrived_at"].to_numpy().astype(np.float64),
        table["prompt_tokens"].to_numpy().astype(np.int64),
        table["output_tokens"].to_numpy().astype(np.int64),
        blocks,
        int(said.get(b"block_size", b"512")) if blocks is not None else 0,
    )


def _servegen(path: Path, seed: int) -> Trace:
    """One client: a renewal process per window of 600 s, lengths from the histogram of its 6 hours."""
    columns = ["t_s", "rate", "cv", "pattern", "shape", "scale_s"]
    windows = pd.read_csv(path, header=None, names=columns)
    lengths = _servegen_lengths(path)
    rng = np.random.default_rng(seed)
    begins = [float(t_s) for t_s in windows["t_s"]]
    at_s: list[FloatArray] = []
    prompt: list[IntArray] = []
    output: list[IntArray] = []
    for row, (begin_s, end_s) in zip(
        windows.to_dict("records"), pairwise([*begins, begins[-1] + 600.0]), strict=True
    ):
        histograms = _of_window(lengths, begin_s)
        if float(row["rate"]) <= 0 or histograms is None:
            continue
        found = _servegen_times(
            str(row["pattern"]), float(row["shape"]), float(row["rate"]), end_s - begin_s, rng
        )
        at_s.append(begin_s + found)
        prompt.append(_draw(histograms[0], len(found), rng))
        output.append(_draw(histograms[1], len(found), rng))
    if not at_s:
        return Trace(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    return Trace(np.concatenate(at_s), np.concatenate(prompt), np.concatenate(output))


def _servegen_times(
    law: str, shape: float, rate_rps: float, length_s: float, rng: np.random.Generator
) -> FloatArray:
    """Arrivals of a Gamma or Weibull renewal process of the published shape and rate.

    The published scale gives another rate than the published one; the rate is what was counted. The
    process is found running: one that starts with the window sends too much, the more so the burstier.
    """
    mean = shape if law == "Gamma" else gamma(1 + 1 / shape)
    now_s, times = -_BEFORE_GAPS / rate_rps, []
    while now_s < length_s:
        drawn = rng.gamma(shape, 1.0, 256) if law == "Gamma" else rng.weibull(shape, 256)
        block = now_s + np.cumsum(drawn / mean / rate_rps)
        times.append(block)
        now_s = float(block[-1])
    found = np.concatenate(times)
    return found[(found >= 0) & (found < length_s)]


_Histogram = tuple[IntArray, FloatArray]


def _servegen_lengths(path: Path) -> dict[float, tuple[_Histogram, _Histogram]]:
    """By begin of the 6 hours: histograms of prompt and output lengths, where there are any."""
    beside = path.with_name(path.name.split("trace")[0] + "dataset.json")
    if not beside.exists():
        raise InputError(
            f"{path} has no lengths: {beside.name} is missing beside it",
            remedy="Put the client's dataset file there, or take lengths of your own.",
        )
    found = {}
    for window, fields in json.loads(beside.read_text()).items():
        # Each field is a Python dictionary in a string.
        histograms = [ast.literal_eval(fields[name]) for name in ("input_tokens", "output_tokens")]
        if all(histograms):
            prompt, output = (
                (np.array(list(h), dtype=np.int64), np.array(list(h.values())) / sum(h.values()))
                for h in histograms
            )
            found[float(window)] = (prompt, output)
    return found


def _of_window(
    lengths: Mapping[float, tuple[_Histogram, _Histogram]], at_s: float
) -> tuple[_Histogram, _Histogram] | None:
    """The histograms of the 6 hours; of the nearest that has some."""
    if not lengths:
        return None
    return lengths[min(lengths, key=lambda begin_s: abs(begin_s - at_s))]


def _draw(histogram: _Histogram, n: int, rng: np.random.Generator) -> IntArray:
    values, share = histogram
    return rng.choice(values, n, p=share)


FORMATS: dict[str, Callable[[Path, int], Trace]] = {
    **{name: _csv(name) for name in _CSV_COLUMNS},
    "mooncake": _json_lines(512, 1000.0),
    "bailian": _json_lines(16, 1.0),
    "servegen": _servegen,
    "parquet": _parquet,
}
