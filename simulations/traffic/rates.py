"""Arrivals by a user's own rates, read from a file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field

from serving.errors import InputError
from simulations.traffic.files import checked_stamp, digest
from simulations.traffic.renewals import FloatArray, Process

_COLUMNS = ("t_s", "rps")


class Rates(Process):
    """Rates of a CSV file with columns t_s and rps, in its own time from its first row.

    Linear between the rows. Use `Rates.of`, which notes the digest of the file.
    """

    kind: Literal["rates"] = "rates"
    path: str
    sha256: str | None = None
    """Checked when the file is read; None takes whatever lies there."""
    factor: float = Field(1.0, gt=0)
    """On the rate; gaps stay as bursty."""
    burstiness: float = Field(1.0, gt=0)
    """CV^-2 of the gaps; a file of rates does not tell, 1 is Poisson."""

    @classmethod
    def of(cls, path: Path | str, **chosen: object) -> Self:
        """The rates of exactly the file that lies there now.

        Raises:  InputError: no such file, or no rates.
        """
        found = cls.model_validate({"path": str(path), "sha256": digest(path), **chosen})
        found.table()
        return found

    def table(self) -> tuple[FloatArray, FloatArray]:
        """Times from 0 and rates of the file, times the factor.

        Raises:  InputError: no such file, another one than sha256 names, or a row that cannot be.
        """
        path = Path(self.path).expanduser()
        t_s, rps = _read(str(path), checked_stamp(path, self.sha256))
        return t_s, rps * self.factor

    @property
    def span_s(self) -> float:
        """How long the file lasts."""
        return float(self.table()[0][-1])

    @property
    def gap_shape(self) -> float:
        return self.burstiness

    def rates(self, duration_s: float) -> tuple[FloatArray, FloatArray]:
        t_s, rps = self.table()
        if duration_s > t_s[-1]:
            raise InputError(
                f"duration_s(={duration_s:g}) is longer than the rates of {self.path}"
                f" ({t_s[-1]:g} s)",
                remedy="Shorten it, or lengthen the file.",
            )
        grid_s = np.append(t_s[t_s < duration_s], duration_s)
        return grid_s, np.interp(grid_s, t_s, rps)

    def scaled(self, factor: float) -> Self:
        return self.model_copy(update={"factor": self.factor * factor})


@lru_cache(maxsize=8)
def _read(path: str, stamp: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file ({error})", remedy="Write t_s,rps.") from error
    if not set(_COLUMNS) <= set(table.columns) or len(table) < 2:
        raise InputError(
            f"{path} has no two rows of t_s and rps (its columns are {list(table.columns)})",
            remedy="Write a header t_s,rps and a row for each time.",
        )
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in _COLUMNS}
    wrong = ~np.isfinite(numbers["t_s"]) | ~(np.isfinite(numbers["rps"]) & (numbers["rps"] >= 0))
    wrong |= numbers["t_s"].diff() <= 0
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{path}, line {row + 2}: t_s(={table['t_s'][row]}) must grow and"
            f" rps(={table['rps'][row]}) be a number >= 0",
            remedy="Mend or remove the line.",
        )
    t_s = numbers["t_s"].to_numpy(dtype=np.float64)
    if not numbers["rps"].any():
        raise InputError(f"{path} asks for nothing: all rps are 0", remedy="Choose another file.")
    return t_s - t_s[0], numbers["rps"].to_numpy(dtype=np.float64)
