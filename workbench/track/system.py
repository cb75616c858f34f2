"""A measurement's telemetry as MLflow's system metrics, under the names that MLflow itself uses.

They stand on the wall clock: a measurement knows when it began to the second, so that is how well
two measurements can be laid beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

if TYPE_CHECKING:
    from workbench.measure import Measurement

FloatArray = npt.NDArray[np.float64]

_MOST_SAMPLES = 100
"""Of each metric: enough for a chart; all of them lie in the telemetry's file."""
_MOST_OF_A_RUN = 1500
"""Of all metrics together: with eight GPUs they are 34, and each sample is a row of the store."""
_OF_GPU = {
    "gpu_utilisation": ("utilization_percentage", 100.0),
    "memory_used_bytes": ("memory_usage_megabytes", 1e-6),
    "power_w": ("power_usage_watts", 1.0),
    "temperature_c": ("temperature_celsius", 1.0),
}
_OF_HOST = {
    "cpu_utilisation": ("cpu_utilization_percentage", 100.0),
    "host_memory_used_bytes": ("system_memory_usage_megabytes", 1e-6),
}


def span_ms(measurement: Measurement) -> tuple[int, int]:
    """Begin and end of the measurement on the wall clock, milliseconds since 1970."""
    begin_ms = int(1000 * datetime.fromisoformat(measurement.environment.started_at).timestamp())
    ends_s = measurement.requests["end_s"].dropna()
    return begin_ms, begin_ms + int(1000 * (ends_s.max() if len(ends_s) else 0.0))


def samples(measurement: Measurement) -> list[tuple[str, int, float]]:
    """(metric, wall clock in milliseconds, value), each metric thinned by averaging neighbours."""
    table = measurement.telemetry
    if table.empty:
        return []
    begin_ms, _ = span_ms(measurement)
    series = dict(_series(table))
    most = min(_MOST_SAMPLES, max(1, _MOST_OF_A_RUN // max(1, len(series))))
    return [
        (name, begin_ms + int(1000 * t_s), value)
        for name, values in series.items()
        for t_s, value in _thinned(values, most)
    ]


def _series(table: pd.DataFrame) -> Iterator[tuple[str, FloatArray]]:
    """(metric, array (n, 2) of seconds and values) of each counter that was sampled."""
    for gpu, rows in table.groupby("gpu"):
        of_host = int(str(gpu)) < 0
        prefix = "system/" if of_host else f"system/gpu_{gpu}_"
        for column, (name, scale) in (_OF_HOST if of_host else _OF_GPU).items():
            if column in rows:
                known = rows[["t_s", column]].dropna().to_numpy(dtype=np.float64)
                if len(known):
                    yield prefix + name, known * (1.0, scale)


def _thinned(values: FloatArray, most: int) -> list[tuple[float, float]]:
    parts = np.array_split(values, min(len(values), most))
    return [(float(t_s), float(value)) for t_s, value in (part.mean(axis=0) for part in parts)]
