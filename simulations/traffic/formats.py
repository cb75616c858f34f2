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

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serving.errors import InputError
from simulations.traffic.files import checked_stamp
from simulations.traffic.servegen import servegen
from simulations.traffic.trace import Trace

_SERVEGEN_COLUMNS = 6


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
    return _read(str(path), format, seed, checked_stamp(path, sha256))


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
    _refuse_impossible(path, trace)
    return replace(
        trace,
        arrived_at_s=trace.arrived_at_s - trace.arrived_at_s[0],
        prompt_tokens=trace.prompt_tokens.clip(min=1),
        output_tokens=trace.output_tokens.clip(min=1),
    )


def _refuse_impossible(path: str, trace: Trace) -> None:
    """Times that are no number or go back, and lengths below 0."""
    at_s = trace.arrived_at_s
    wrong = {
        "arrives at no time": ~np.isfinite(at_s),
        "arrives before the one above it": np.diff(at_s, prepend=at_s[0]) < 0,
        "has a negative length": (trace.prompt_tokens < 0) | (trace.output_tokens < 0),
    }
    for said, rows in wrong.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[0])
            raise InputError(
                f"{path}: request {row + 1} (t={at_s[row]:g} s, {trace.prompt_tokens[row]} +"
                f" {trace.output_tokens[row]} tokens) {said}",
                remedy="Sort or mend the file.",
            )


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


_PARQUET_COLUMNS = {"arrived_at", "prompt_tokens", "output_tokens"}


def _parquet(path: Path, seed: int) -> Trace:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = _PARQUET_COLUMNS - set(table.column_names)
    if missing:
        raise InputError(
            f"{path} has no column {sorted(missing)}",
            remedy="It needs arrived_at (s), prompt_tokens and output_tokens.",
        )
    for name in sorted(_PARQUET_COLUMNS):
        if table[name].null_count:
            raise InputError(
                f"{path} has {table[name].null_count} rows without {name}", remedy="Remove them."
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


FORMATS: dict[str, Callable[[Path, int], Trace]] = {
    **{name: _csv(name) for name in _CSV_COLUMNS},
    "mooncake": _json_lines(512, 1000.0),
    "bailian": _json_lines(16, 1.0),
    "servegen": servegen,
    "parquet": _parquet,
}
