"""A Measurement: what came of one workload on one variant, with its evidence.

Definitions are those of `vllm bench serve` (vllm/benchmarks/serve.py, calculate_metrics), so that
results compare; docs/METRICS.md has them in one table, beside the names that other tools use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from serving.errors import InputError
from serving.plan import EngineArgs, Slo, Variant
from serving.values import one_line, shown_html
from simulations.traffic import ClosedLoop, Constant, Gamma, Poisson, Workload
from workbench.measure.engine import ReplicaInfo
from workbench.measure.environment import Environment
from workbench.measure.roofline import (
    Ceilings,
    ModelCost,
    joules_per_token,
    usd_per_million_tokens,
    utilisation,
)
from workbench.measure.telemetry import summarise

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Environment", "Measurement", "Measurements", "Mode", "ReplicaInfo", "frame"]

Mode = Literal["offline", "server"]
SCHEMA_VERSION = 2
_REWRITE = "Measure again into another folder."


@dataclass(frozen=True)
class Measurement:
    """One variant under one workload on one engine.

    Attributes:
        requests: one row per request: request_id, scheduled_s, sent_s, first_token_s, end_s (seconds
            since the start of the run, NaN if never), prompt_tokens, output_tokens,
            asked_output_tokens, counted (scheduled after the warm-up), error (None if none), itl_s.
        steps: one row per engine step that did something: t_s (its end, on the clock of requests),
            step_s (schedule, execute, update), gap_s (end of the previous step to its start while the
            engine was busy; NaN after idling; 0 where step_s is the whole period), prefill_requests,
            prefill_tokens, decode_seqs, kv_tokens (in the KV cache when it ran, its own included:
            decoding sequences read kv_tokens - prefill_tokens), running, waiting (both after it),
            preempted.
        invalid: reasons why it must not be trusted; empty = valid.
        telemetry: samples of GPUs and host, see `telemetry.Telemetry.frame`; without a GPU the
            host's alone.
        client: processes, lag_p99_s and cpu_share of the load client; empty offline.
        cost: what a step of the model must move and compute; None where its shape is not known.
    """

    name: str
    mode: Mode
    variant: Variant
    engine: EngineArgs
    workload: Workload
    requests: pd.DataFrame
    steps: pd.DataFrame
    replica: ReplicaInfo
    environment: Environment
    invalid: tuple[str, ...] = ()
    telemetry: pd.DataFrame = field(default_factory=pd.DataFrame)
    client: Mapping[str, float] = field(default_factory=dict)
    cost: ModelCost | None = None

    @property
    def batch(self) -> int | None:
        """Concurrency of a closed loop."""
        arrivals = self.workload.arrivals
        return arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None

    @property
    def rate_rps(self) -> float | None:
        """Offered mean rate of an open loop; of a closed loop None."""
        arrivals = self.workload.arrivals
        if isinstance(arrivals, ClosedLoop):
            return None
        if isinstance(arrivals, Constant | Poisson | Gamma):
            return arrivals.rate_rps
        return len(self.requests) / self.workload.duration_s

    def load_window_s(self) -> tuple[float, float]:
        """When the load was on: from the end of the warm-up to the last send.

        A closed loop: from when every user had sent once, to the last send. What is answered after it
        is the tail, in which the batch empties.
        """
        sent_s = self.requests["sent_s"].dropna().sort_values().to_numpy()
        if not len(sent_s):
            return nan, nan
        first_s = sent_s[min(self.batch, len(sent_s)) - 1] if self.batch else self.workload.warmup_s
        return float(first_s), float(max(first_s, sent_s[-1]))

    def device(self) -> dict[str, float]:
        """What GPUs and host did while the load was on (see `telemetry.summarise`)."""
        if self.telemetry.empty:
            return {}
        done = self.requests["end_s"].max()
        begin_s = self.workload.warmup_s
        return summarise(self.telemetry, (begin_s, float(done)))

    def roofline(self, ceilings: Ceilings) -> dict[str, float]:
        """Achieved bandwidth and operations, and their shares of what the device can do."""
        if self.cost is None or self.steps.empty:
            return {}
        found = utilisation(
            self.steps,
            self.cost,
            ceilings,
            tensor_parallel_size=self.engine.tensor_parallel_size,
        )
        return {name: value for name, value in found.items() if isinstance(value, float)}

    def judged(self, invalid: Sequence[str]) -> Measurement:
        """The same with a verdict."""
        return replace(self, invalid=tuple(invalid))

    def latencies(self) -> pd.DataFrame:
        """Counted and successful requests with ttft_s, tpot_s, e2e_s and those from the schedule."""
        table = self.requests[self.requests["counted"] & self.requests["error"].isna()].copy()
        table["ttft_s"] = table["first_token_s"] - table["sent_s"]
        table["ttft_from_schedule_s"] = table["first_token_s"] - table["scheduled_s"]
        table["e2e_s"] = table["end_s"] - table["sent_s"]
        table["e2e_from_schedule_s"] = table["end_s"] - table["scheduled_s"]
        later_tokens = (table["output_tokens"] - 1).where(table["output_tokens"] > 1)
        table["tpot_s"] = (table["e2e_s"] - table["ttft_s"]) / later_tokens
        return table

    def summary(
        self,
        slo: Slo | None = None,
        *,
        ceilings: Ceilings | None = None,
        usd_per_hour: float | None = None,
    ) -> dict[str, float]:
        """Every metric of docs/METRICS.md. NaN: not observed.

        Args:    slo: adds goodput_rps and slo_attainment.
                 ceilings: of this hardware; adds mbu and mfu.
                 usd_per_hour: price of one GPU (or machine) hour; adds usd_per_million_tokens.
        """
        done = self.latencies()
        counted = self.requests[self.requests["counted"]]
        duration_s = float(done["end_s"].max() - self.workload.warmup_s) if len(done) else nan
        itl_s = np.concatenate([np.empty(0), *(np.asarray(gaps) for gaps in done["itl_s"])])
        output, prompt = float(done["output_tokens"].sum()), float(done["prompt_tokens"].sum())
        lateness_s = (counted["sent_s"] - counted["scheduled_s"]).dropna().to_numpy()
        found = {
            "requests": float(len(done)),
            "errors": float(counted["error"].notna().sum()),
            "duration_s": duration_s,
            "request_throughput_rps": len(done) / duration_s,
            "output_tokens_per_s": output / duration_s,
            "total_tokens_per_s": (prompt + output) / duration_s,
            "steady_output_tokens_per_s": self._steady_tokens_per_s(),
            **_spread("ttft", done["ttft_s"].to_numpy()),
            **_spread("tpot", done["tpot_s"].dropna().to_numpy()),
            **_spread("itl", itl_s),
            **_spread("e2e", done["e2e_s"].to_numpy()),
            **_spread("ttft_from_schedule", done["ttft_from_schedule_s"].to_numpy()),
            **_spread("e2e_from_schedule", done["e2e_from_schedule_s"].to_numpy()),
            "send_lateness_p99_s": _percentile(lateness_s, 99),
            **self._costs(output, usd_per_hour),
        }
        if slo is not None:
            good = float(_meets(done, slo.limits()).sum())
            found["goodput_rps"] = good / duration_s
            found["slo_attainment"] = good / len(counted) if len(counted) else nan
        return found | (self.roofline(ceilings) if ceilings else {})

    def _steady_tokens_per_s(self) -> float:
        """Output tokens by when they came, of all requests, while the load was on.

        A chunk counts for as many tokens as the request's others.
        """
        begin_s, end_s = self.load_window_s()
        whole = self.requests[self.requests["error"].isna()]
        if not end_s > begin_s or whole.empty:
            return nan
        chunks = whole["itl_s"].map(len).to_numpy() + 1
        came_s = np.concatenate(
            [
                first_s + np.concatenate([[0.0], np.cumsum(np.asarray(gaps, dtype=np.float64))])
                for first_s, gaps in zip(whole["first_token_s"], whole["itl_s"], strict=True)
            ]
        )
        tokens = np.repeat(whole["output_tokens"].to_numpy() / chunks, chunks)
        return float(tokens[(came_s > begin_s) & (came_s <= end_s)].sum()) / (end_s - begin_s)

    def _costs(self, output_tokens: float, usd_per_hour: float | None) -> dict[str, float]:
        """What the load took of the device; nothing that was not sampled."""
        device = {name: value for name, value in self.device().items() if isfinite(value)}
        found = dict(device)
        if "energy_j" in device:
            found["joules_per_token"] = joules_per_token(device, output_tokens)
        if usd_per_hour is not None:
            hourly = usd_per_hour * max(self.engine.tensor_parallel_size, 1)
            steady = self._steady_tokens_per_s()
            found["usd_per_million_tokens"] = usd_per_million_tokens(hourly, steady)
        return found

    def write(self, folder: Path) -> Path:
        """Write requests.parquet, steps.parquet and, last and whole, measurement.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "measurement.json").unlink(missing_ok=True)
        self.requests.to_parquet(folder / "requests.parquet", index=False)
        self.steps.to_parquet(folder / "steps.parquet", index=False)
        self.telemetry.to_parquet(folder / "telemetry.parquet", index=False)
        head = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "mode": self.mode,
            "variant": self.variant.model_dump(mode="json"),
            "engine": self.engine.model_dump(mode="json"),
            "workload": self.workload.model_dump(mode="json"),
            "replica": self.replica.model_dump(mode="json"),
            "environment": self.environment.model_dump(mode="json"),
            "invalid": list(self.invalid),
            "client": dict(self.client),
            "cost": self.cost.model_dump(mode="json") if self.cost else None,
        }
        partial = folder / "measurement.json.partial"
        partial.write_text(json.dumps(head, indent=2) + "\n")
        partial.replace(folder / "measurement.json")
        return folder

    @classmethod
    def read(cls, folder: Path) -> Measurement:
        """Read what `write` wrote.

        Raises:  InputError: not there, incomplete, or of another schema version.
        """
        try:
            head = json.loads((folder / "measurement.json").read_text())
            version = head.get("schema_version")
            if version not in range(1, SCHEMA_VERSION + 1):
                raise InputError(
                    f"{folder} has schema_version(={version!r}),"
                    f" this version reads 1 to {SCHEMA_VERSION}",
                    remedy=_REWRITE,
                )
            telemetry = folder / "telemetry.parquet"
            requests = pd.read_parquet(folder / "requests.parquet")
            # pandas has its own missing string; here a request without an error has None.
            requests["error"] = pd.Series(
                [None if pd.isna(error) else str(error) for error in requests["error"]],
                dtype=object,
            )
            requests["itl_s"] = pd.Series([list(gaps) for gaps in requests["itl_s"]], dtype=object)
            return cls(
                name=head["name"],
                mode=head["mode"],
                variant=Variant.model_validate(head["variant"]),
                engine=EngineArgs.model_validate(head["engine"]),
                workload=Workload.model_validate(head["workload"]),
                requests=requests,
                steps=pd.read_parquet(folder / "steps.parquet"),
                replica=ReplicaInfo.model_validate(head["replica"]),
                environment=Environment.model_validate(head["environment"]),
                invalid=tuple(head["invalid"]),
                # What follows came with version 2.
                telemetry=pd.read_parquet(telemetry) if telemetry.exists() else pd.DataFrame(),
                client=head.get("client", {}),
                cost=ModelCost.model_validate(head["cost"]) if head.get("cost") else None,
            )
        except ValidationError as error:
            raise InputError(
                f"{folder} is not a measurement: {one_line(error)}", remedy=_REWRITE
            ) from error
        except (OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{folder} is not a whole measurement ({error})", remedy=_REWRITE
            ) from error

    def renamed(self, name: str) -> Measurement:
        """The same under another name."""
        return replace(self, name=name)

    def _repr_html_(self) -> str:
        verdict = "; ".join(self.invalid) or "valid"
        gpu = "" if self.environment.gpu_count else ", no GPU: no power, energy or memory sampled"
        known = frame([self]).drop(columns=["name", "valid"]).dropna(axis=1)
        table = known.T.reset_index(names="metric").rename(columns={0: "value"})
        return shown_html(f"{self.name} ({verdict}{gpu})", table)

    def plot(self, slo: Slo | None = None) -> go.Figure:
        """Share of the requests that were answered within a time; with the limits of an SLO."""
        from workbench.report.value_figures import latency_shares

        return latency_shares(self, slo)


class Measurements(list[Measurement]):
    """What a sweep measured: a list, shown as the table of its loads."""

    def _repr_html_(self) -> str:
        from workbench.tables import measurement_table

        wrong = [f"{m.name}: {reason}" for m in self for reason in m.invalid]
        table = measurement_table(self).dropna(axis=1, how="all") if self else None
        return shown_html(f"{len(self)} measurements", table, doubts=wrong)


def frame(
    measurements: Sequence[Measurement],
    slo: Slo | None = None,
    *,
    ceilings: Ceilings | None = None,
    usd_per_hour: float | None = None,
) -> pd.DataFrame:
    """One row per measurement: name, variant, mode, batch or rate_rps, valid, and its summary."""
    rows: list[Mapping[str, Any]] = [
        {
            "name": m.name,
            "variant": m.variant.name,
            "mode": m.mode,
            "batch": m.batch,
            "rate_rps": m.rate_rps,
            "valid": not m.invalid,
            **m.summary(slo, ceilings=ceilings, usd_per_hour=usd_per_hour),
        }
        for m in measurements
    ]
    return pd.DataFrame(rows)


def _percentile(values: npt.NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values, q)) if len(values) else nan


def _spread(name: str, values: npt.NDArray[np.float64]) -> dict[str, float]:
    return {
        f"{name}_mean_s": float(values.mean()) if len(values) else nan,
        f"{name}_p50_s": _percentile(values, 50),
        f"{name}_p99_s": _percentile(values, 99),
    }


def _meets(done: pd.DataFrame, limits: Mapping[str, float]) -> pd.Series:
    good = pd.Series(True, index=done.index)
    for limit, value_s in limits.items():
        # ttft_p99_s bounds ttft_s of every single request that counts as good.
        good &= done[limit.replace("_p99", "")].fillna(0.0) <= value_s
    return good
