"""What a simulation says: tables, and the few numbers that decisions rest on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pandas as pd
from pydantic import Field

from serving.values import Estimate, Value, shown_html
from simulations.traffic import Workload

if TYPE_CHECKING:
    import plotly.graph_objects as go

Outcome = Literal["not started", "under way", "completed", "rolled back"]


class Prediction(Value):
    """What verify must find when it sends `workload` to one replica of the exported plan."""

    workload: Workload
    metrics: dict[str, Estimate]
    """ttft_p50_s, ttft_p99_s, tpot_p50_s, tpot_p99_s, e2e_p50_s, e2e_p99_s, output_tokens_per_s;
    each with its interval over seeds."""
    tolerance_p50: float = 0.25
    """Largest relative error that still counts as kept, for medians and throughput."""
    tolerance_p99: float = 0.5
    of_model: dict[str, float] = Field(default_factory=dict)
    """Which share of each interval's square is the latency model's uncertainty: 0 to 1."""
    doubts: tuple[str, ...] = ()
    """Those of the latency model, and of its use beyond what it was fitted to."""

    def table(self) -> pd.DataFrame:
        """metric, value, low, high and the relative error that still counts as kept."""
        return pd.DataFrame(
            [
                {
                    "metric": name,
                    **told.model_dump(include={"value", "low", "high"}),
                    "tolerated": self.tolerance_p99 if "p99" in name else self.tolerance_p50,
                }
                for name, told in self.metrics.items()
            ]
        )

    def _repr_html_(self) -> str:
        return shown_html("What one replica will show", self.table(), doubts=self.doubts)


class BlastRadius(Value):
    """What a release did, in one run. Times are None where it did not happen."""

    outcome: Outcome
    reason: str
    """Why it was rolled back: worse, undecided, or not ready in time."""
    touched: int
    """Requests that a replica of the new version took last."""
    touched_share: float
    """Of all requests."""
    failed: int
    """Of those touched: in the end they got an error, or died with a replica."""
    errors: int
    """Times that a replica of the new version failed a request, which clients may have sent again."""
    slowed: int
    """Of those touched: answered, but over a limit of the SLO."""
    live_at_s: float | None
    """When the new version took its first traffic."""
    detected_after_s: float | None
    """From then to the verdict that sent all traffic back."""
    rolled_back_after_s: float | None
    """From the verdict to the last pod of the new version being gone."""
    completed_at_s: float | None
    """When only the new version was left."""
    extra_gpu_hours: float
    """Held by pods beyond the replicas (with spares) that were wanted, during the rollout."""


@dataclass(frozen=True)
class SimResult:
    """A simulated day of a fleet, with intervals over seeds. Utilisation and shares are 0 to 1.

    Attributes:
        plan_name: which plan was simulated.
        metrics: {name: Estimate over seeds}: ttft_p50_s, ttft_p99_s, tpot_p50_s, tpot_p99_s,
        e2e_p50_s,
            e2e_p99_s, slo_attainment (share of requests that meet every limit), gpu_hours (per 24
            h), cost_usd (per 24 h), replicas_mean, replicas_max, scale_events,
            gpu_utilisation_mean, idle_share (ready replica time with nothing to do), and shares of
            requests: unfinished, failed (error, or died with a replica), rejected (503), aborted
            (given up by the client). Latencies are of all but the failed and the rejected.
        per_seed: DataFrame, one row per seed, the same columns as metrics and `seed`.
        timeline: DataFrame of the first seed: t_s, offered_rps, replicas_ready, replicas_desired,
            requests_running, requests_waiting, kv_cache_usage, gpu_utilisation.
        alerts: DataFrame: alert (serving/alerts.py), seed, started_at_s (it fires), ended_at_s, noise
            (no counted request that was under way then, or in what it looks back at, broke the SLO).
        keeps_slo: whether the upper end of every bound percentile's interval is within its limit, and
            the shares of lost requests within theirs (simulations/promise.py).
        doubts: those of the latency model, and of its use beyond what it was fitted to.
        of_model: {name: share of the interval's square that is the model's uncertainty, 0 to 1}; empty
            where it was not asked for.
        events: DataFrame of the first seed: t_s, event (ready, deleted, terminated, gone, crash,
            OOM, node lost), pod, node.
        blast_radius: of the release, per seed; () without one.
        stopped: why a run ended before its traffic (simulations/early.py); empty where none did.
    """

    plan_name: str
    metrics: dict[str, Estimate]
    per_seed: pd.DataFrame
    timeline: pd.DataFrame
    alerts: pd.DataFrame
    keeps_slo: bool
    doubts: tuple[str, ...] = ()
    of_model: dict[str, float] = field(default_factory=dict)
    events: pd.DataFrame = field(default_factory=pd.DataFrame)
    blast_radius: tuple[BlastRadius, ...] = ()
    stopped: str = ""

    def _repr_html_(self) -> str:
        table = pd.DataFrame(
            [
                {"metric": name, **e.model_dump()}
                | ({"of which model": self.of_model[name]} if name in self.of_model else {})
                for name, e in self.metrics.items()
            ]
        )
        verdict = "keeps the SLO" if self.keeps_slo else "breaks the SLO"
        return shown_html(f"{self.plan_name} {verdict}", table, doubts=self.doubts)

    def plot_day(self) -> go.Figure:
        """Offered rate over the day, and below it the replicas that are wanted and that are ready."""
        from simulations.figures import replicas_over_day

        return replicas_over_day(self)
