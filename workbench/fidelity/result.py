"""What came of trying predictions: cells of load and metric, with verdicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from serving.errors import InputError
from serving.values import shown_html
from simulations.latency import LatencyModel
from workbench.fidelity.loads import Loads

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FILE = "fidelity.json"


@dataclass(frozen=True)
class Fidelity:
    """Predicted against measured, for each load and metric.

    Attributes:
        loads: what was sent.
        rows: load, rate_rps, requests (counted), repeats, then as `agreement.compare`, with of_model
            (share of the prediction's interval that is the coefficients') and verdict (within target,
            within noise, missed).
        points: one row per run: name, load, repeat, requests, started_at and the metrics.
        latency: the model that was tried.
        measured_on: hardware and versions.
        doubts: why what was used cannot be trusted.
        left_out: runs that were not used, and why.
    """

    loads: Loads
    rows: pd.DataFrame
    points: pd.DataFrame
    latency: LatencyModel
    measured_on: str = ""
    doubts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Loads of which no run could be used."""
        return [name for name in self.loads.workloads if name not in set(self.rows["load"])]

    @property
    def holds(self) -> bool:
        """Whether every cell of every load is right."""
        return bool(self.rows["holds"].all()) and not self.missing

    def __str__(self) -> str:
        counts = self.rows["verdict"].value_counts()
        told = ", ".join(f"{counts.get(v, 0)} {v}" for v in _VERDICTS)
        missing = f"; not measured: {', '.join(self.missing)}" if self.missing else ""
        return (
            f"{len(self.rows)} cells: {told}{missing}. Capacity {self.loads.capacity_rps:.4g}"
            f" requests/s ({self.loads.capacity_source})"
        )

    def table(self) -> pd.DataFrame:
        """What a reader needs: milliseconds (throughput as it is) and percent, a row per cell."""
        rows = self.rows
        scale = rows["metric"].str.endswith("_s").where(rows["metric"] != _THROUGHPUT, False)
        unit = scale.map({True: 1e3, False: 1.0})
        named = rows["metric"].str.replace(r"_p(\d+)_s$", r" p\1, ms", regex=True)
        return pd.DataFrame(
            {
                "load": rows["load"],
                "metric": named.replace(_THROUGHPUT, "output tokens/s"),
                "predicted": unit * rows["predicted"],
                "low": unit * rows["low"],
                "high": unit * rows["high"],
                "of model": rows["of_model"].map("{:.0%}".format),
                "measured": unit * rows["measured"],
                "error": rows["relative_error"].map("{:+.1%}".format),
                "interval": [
                    "" if low != low else f"{low:+.1%} to {high:+.1%}"
                    for low, high in zip(rows["error_low"], rows["error_high"], strict=True)
                ],
                "noise floor": rows["noise_floor"].map("{:.1%}".format),
                "verdict": rows["verdict"],
            }
        )

    def write(self, folder: Path) -> Path:
        """Write folder/fidelity.parquet, fidelity-points.parquet and, with all of it, fidelity.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.rows.to_parquet(folder / "fidelity.parquet", index=False)
        self.points.to_parquet(folder / "fidelity-points.parquet", index=False)
        said = {
            "holds": self.holds,
            "said": str(self),
            "measured_on": self.measured_on,
            "doubts": list(self.doubts),
            "left_out": list(self.left_out),
            "loads": self.loads.model_dump(mode="json"),
            "latency": self.latency.model_dump(mode="json"),
            "rows": json.loads(self.rows.to_json(orient="records", double_precision=9)),
            "points": json.loads(self.points.to_json(orient="records", double_precision=9)),
        }
        path = folder / _FILE
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(said, indent=2) + "\n")
        return partial.replace(path)

    @classmethod
    def read(cls, folder: Path) -> Fidelity:
        """Read what `write` wrote.

        Raises:  InputError: nothing of that kind lies there.
        """
        path = folder / _FILE
        if not path.exists():
            raise InputError(f"{folder} holds no fidelity", remedy="Run `workbench fidelity`.")
        said = json.loads(path.read_text())
        return cls(
            loads=Loads.model_validate(said["loads"]),
            rows=pd.read_parquet(folder / "fidelity.parquet"),
            points=pd.read_parquet(folder / "fidelity-points.parquet"),
            latency=LatencyModel.model_validate(said["latency"]),
            measured_on=said["measured_on"],
            doubts=tuple(said["doubts"]),
            left_out=tuple(said["left_out"]),
        )

    def _repr_html_(self) -> str:
        return shown_html(str(self), self.table(), doubts=self.doubts)

    def plot(self) -> go.Figure:
        """Predicted against measured latencies; what lies on the line is predicted exactly."""
        from workbench.report.fidelity_figures import predicted_against_measured

        return predicted_against_measured(self)

    def plot_errors(self) -> go.Figure:
        """Relative error of each metric at each load, with its interval over repeats."""
        from workbench.report.fidelity_figures import errors_by_load

        return errors_by_load(self)


_THROUGHPUT = "output_tokens_per_s"
_VERDICTS = ("within target", "within noise", "missed")
