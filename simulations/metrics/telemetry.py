"""What Prometheus has of the pods, and what of it the autoscaler can see."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from serving import promql
from serving.alerts import ALERTS
from serving.errors import InputError
from serving.promql import Series
from serving.signals import SIGNALS, Signal
from simulations.engine import Reading
from simulations.metrics.layout import (
    GPU_COUNTERS,
    N_SERVER,
    SERVER_COUNTERS,
    layout,
    server_rows,
)
from simulations.metrics.pipeline import Pipeline
from simulations.metrics.promql import Query
from simulations.metrics.samples import Flags, FloatArray, Samples

_SIGNALS_REACH_S = max(promql.reach_s(signal.per_pod) for signal in SIGNALS.values())
_REACH_S = max(_SIGNALS_REACH_S, *(promql.reach_s(alert.expression) for alert in ALERTS))
BEHIND_S = 300.0
"""What is asked about the past may be asked so much later."""


class Telemetry:
    """The samples of the last minutes, through a pipeline.

    A pod whose server does not answer yet has no vLLM metrics: the autoscaler counts it as missing.
    Its GPU is idle.

    Args:    memory_share: of a GPU's memory that a server takes at its start, 0 to 1.
             relist_phase_s: when the adapter looks for metrics the first time.
             alerts: whether they will be asked for, or the autoscaler's metrics alone.
             columns: so many of the first are kept of a server's scrape (`server_columns`).
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        memory_share: float = 0.84,
        relist_phase_s: float = 0.0,
        alerts: bool = True,
        columns: int = N_SERVER,
    ) -> None:
        self._pipeline = pipeline
        self._memory_share = memory_share
        late_s = pipeline.query_age_s + 2 * pipeline.evaluation_interval_s
        reach_s, late_s = (_REACH_S, late_s + BEHIND_S) if alerts else (_SIGNALS_REACH_S, late_s)
        self._kept_s = max(reach_s, pipeline.lookback_s) + late_s
        # Stale markers take rows of their own: a few more for pods that crash again and again.
        keep = math.ceil(self._kept_s / pipeline.scrape_interval_s) + 10
        major = pipeline.prometheus
        self.columns = columns
        self._server = Samples(SERVER_COUNTERS[:columns], keep, prometheus=major)
        self._gpu = Samples(GPU_COUNTERS, keep, prometheus=major)
        self._layout = layout(self._server, self._gpu)
        self._chosen: dict[Series, list[int]] = {}
        self._gone: deque[tuple[float, int]] = deque()
        self._busy: dict[int, tuple[float, float]] = {}
        """By pod, at the exporter's last reading: busy seconds so far, and the time."""
        self._exported: dict[int, tuple[float, float]] = {}
        """By pod: utilisation, 0 to 100, and memory in use, 0 to 1."""
        self._relist_s = relist_phase_s
        self._sampled_s = {id(self._server): -np.inf, id(self._gpu): -np.inf}
        self._known = dict.fromkeys(self._sampled_s, True)

    @property
    def reads_gpus(self) -> bool:
        """Whether GPUs are read at each scrape, by no exporter of their own."""
        return self._pipeline.gpu_exporter_s == 0

    # -- in --------------------------------------------------------------------------------------

    def collect(
        self, now_s: float, busy: Mapping[int, tuple[float, float]], loading: Collection[int] = ()
    ) -> None:
        """The GPU exporter reads its devices: busy with anything at all since its last reading.

        A device itself averages over its last second at most; the mean over readings is the same.

        Args:    busy: by pod, seconds so far and since when, of those whose server answers.
                 loading: pods that run and do not answer yet.
        """
        before, self._busy, self._exported = self._busy, {}, {}
        for pod in loading:
            self._exported[pod] = (0.0, 0.0)
        for pod, (total_s, started_s) in busy.items():
            busy_s, since_s = before.get(pod, (0.0, -np.inf))
            if since_s < started_s:
                busy_s, since_s = 0.0, started_s
            share = busy_share(total_s - busy_s, now_s - since_s)
            self._busy[pod] = (total_s, now_s)
            self._exported[pod] = (100 * share, self._memory_share)

    def scrape(
        self,
        now_s: float,
        readings: Mapping[int, Reading],
        loading: Collection[int] = (),
        down: Collection[int] = (),
    ) -> None:
        """Prometheus scrapes some pods.

        Args:    readings: by pod, of those whose server answers.
                 loading: pods that run and do not answer yet.
                 down: pods that answer nothing, their GPU's exporter neither.
        """
        if self.reads_gpus:
            busy = {pod: (r.busy_s, r.started_s) for pod, r in readings.items()}
            self.collect(now_s, busy, loading)
        rows = server_rows(list(readings.values()))[:, : self.columns]
        self.take(now_s, list(readings), rows, loading, down)

    def take(
        self,
        now_s: float,
        pods: Sequence[int],
        exposed: FloatArray,
        loading: Collection[int] = (),
        down: Collection[int] = (),
    ) -> None:
        """What Prometheus got of a scrape, a row of `exposed` per pod whose server answers."""
        self._relist(now_s)
        while self._gone and self._gone[0][0] < now_s - self._kept_s:
            self._forget(self._gone.popleft()[1])
        if self._pipeline.stale_markers:
            for pod in (*loading, *down):
                self._server.mark_stale(now_s, pod)
            for pod in down:
                self._gpu.mark_stale(now_s, pod)
        self._server.write(now_s, list(pods), exposed)
        devices = [pod for pod in (*pods, *loading) if pod in self._exported]
        if devices:
            exported = np.array([self._exported[pod] for pod in devices])
            rows = np.column_stack([exported, 1 - exported[:, 1]])
            self._gpu.write(now_s, devices, rows)
        for samples, any_of in ((self._server, pods), (self._gpu, devices)):
            if any_of:
                self._sampled_s[id(samples)] = now_s

    def vanish(self, now_s: float, pod: int) -> None:
        """The pod is gone: its series end with a stale marker, and what was counted stays in windows.

        Prometheus writes the marker some two scrapes later; here it is there at once.
        """
        if self._pipeline.stale_markers:
            self._server.mark_stale(now_s, pod)
            self._gpu.mark_stale(now_s, pod)
        self._gone.append((now_s, pod))

    def _forget(self, pod: int) -> None:
        for samples in (self._server, self._gpu):
            if pod in samples:
                samples.forget(pod)

    def _relist(self, now_s: float) -> None:
        """The adapter lists the metrics that had a sample since it did so last."""
        every_s = self._pipeline.relist_s
        if every_s == 0 or self._relist_s > now_s:
            return
        # Those it missed between two calls saw what the last of them sees, or something older.
        self._relist_s += every_s * ((now_s - self._relist_s) // every_s)
        for table, sampled_s in self._sampled_s.items():
            first = sampled_s == -np.inf and self._known[table]
            self._known[table] = first or sampled_s > self._relist_s - every_s
        self._relist_s += every_s

    # -- out -------------------------------------------------------------------------------------

    def query(self, at_s: Sequence[float], without: Collection[int] = ()) -> Query:
        """What Prometheus answers at some times, none of them long ago, of all pods but some."""
        kept: dict[int, Flags] | None = None
        if without:
            gone = list(without)
            kept = {id(s): ~np.isin(s.target, gone) for s in (self._server, self._gpu)}
        lookback_s = self._pipeline.lookback_s
        return Query(self._layout, np.array(at_s), lookback_s, kept, self._chosen)

    def visible(self, metric: str, now_s: float) -> dict[int, float]:
        """A metric by pod, as the autoscaler reads it now; pods without series are left out.

        Raises:  InputError: a metric that the twin does not know.
        """
        signal = signal_of(metric)
        if not self._answers(signal, now_s):
            return {}
        found = self.query([now_s - self._pipeline.query_age_s])(signal.per_pod)
        rows = np.flatnonzero(found.present[0, :, 0])
        pods = self._layout[signal.source].samples.target[rows].tolist()
        return dict(zip(pods, found.values[0, rows, 0].tolist(), strict=True))

    def over_all(self, metric: str, now_s: float, without: Collection[int] = ()) -> float | None:
        """The metric as one value, as an External or Object metric is; None where there is no series.

        KEDA's prometheus scaler would take that for 0 (`ignoreNullValues`).
        """
        signal = signal_of(metric)
        if not self._answers(signal, now_s):
            return None
        query = self.query([now_s - self._pipeline.query_age_s], without)
        return query(signal.total).scalars[0]

    def _answers(self, signal: Signal, now_s: float) -> bool:
        self._relist(now_s)
        return self._known[id(self._layout[signal.source].samples)]


def signal_of(metric: str) -> Signal:
    """A metric of the table of signals."""
    if metric not in SIGNALS:
        raise InputError(
            f"metric(={metric!r}) is not simulated", remedy=f"Use one of {', '.join(SIGNALS)}."
        )
    return SIGNALS[metric]


def busy_share(busy_s: float, lasted_s: float) -> float:
    """Share of a time that was busy, 0 to 1; 0 of no time."""
    return min(1.0, busy_s / lasted_s) if lasted_s > 0 else 0.0
