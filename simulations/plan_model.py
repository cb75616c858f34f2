"""A plan as a model that predicts: load in, latency and cost out.

The fleet has settled: as many replicas as the load asks for, within the plan's limits, and each gets its
even share as Poisson traffic. What a cold start or a late metric does to a day is asked of `simulate`.

MLflow loads it by `_load_pyfunc` from a folder with plan.json, latency.json and workload.json, without
the workbench and without a pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from serving.errors import InputError
from serving.plan import EngineArgs, Plan
from simulations.engine import percentiles, simulate_workload
from simulations.latency import LatencyModel
from simulations.traffic import Poisson, Workload

RATE = "rate_rps"
_REQUESTS = 4_000


@dataclass(frozen=True)
class PlanModel:
    """The fleet of a plan, settled under a constant load.

    Attributes:
        workload: its lengths; the arrivals are what is asked.
    """

    plan: Plan
    latency: LatencyModel
    workload: Workload

    def predict(self, loads: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row per load.

        Args:    loads: column rate_rps, requests a second that the whole fleet gets.
        Returns: replicas, keeps_slo, usd_per_hour, usd_per_million_output_tokens, and ttft, tpot and
                 e2e at p50 and p99 in seconds.
        Raises:  InputError: no such column, or a rate that is not above 0.
        """
        if RATE not in loads:
            raise InputError(f"columns(={list(loads)}) lack {RATE!r}", remedy="Give a rate a row.")
        return pd.DataFrame([self._settled(float(rate)) for rate in loads[RATE]])

    def _settled(self, rate_rps: float) -> dict[str, Any]:
        if not rate_rps > 0:
            raise InputError(f"{RATE}(={rate_rps!r}) must be > 0", remedy="Ask for some load.")
        least, most = self._limits()
        found = self._shown(rate_rps, most)
        while least < most:
            middle = (least + most) // 2
            tried = self._shown(rate_rps, middle)
            if tried["keeps_slo"]:
                most, found = middle, tried
            else:
                least = middle + 1
        return found

    def _shown(self, rate_rps: float, replicas: int) -> dict[str, Any]:
        latencies = replica_under(
            rate_rps / replicas, self.workload, self.latency, self.plan.engine
        )
        gpus = replicas * self.plan.gpus_per_replica
        usd_per_hour = gpus * self.plan.gpu_usd_per_hour
        tokens_per_s = rate_rps * latencies.pop("output_tokens")
        return {
            "replicas": replicas,
            "keeps_slo": all(latencies[n] <= limit for n, limit in self.plan.slo.limits().items()),
            "usd_per_hour": usd_per_hour,
            "usd_per_million_output_tokens": usd_per_hour / (3600 * tokens_per_s / 1e6),
            **latencies,
        }

    def _limits(self) -> tuple[int, int]:
        hpa = self.plan.hpa
        if hpa is None:
            fixed = self.plan.replicas or 1
            return fixed, fixed
        return hpa.min_replicas, hpa.max_replicas


def replica_under(
    rate_rps: float, workload: Workload, latency: LatencyModel, engine: EngineArgs
) -> dict[str, float]:
    """Percentiles of one replica under Poisson load, and the mean `output_tokens` of a request.

    The first quarter of the requests, while the queue fills, is not counted.
    """
    load = workload.at(
        arrivals=Poisson(rate_rps=rate_rps),
        duration_s=_REQUESTS / rate_rps,
        warmup_s=0,
        spikes=(),
    )
    requests = simulate_workload(load, latency, engine)
    settled = requests.iloc[len(requests) // 4 :]
    return {**percentiles(settled), "output_tokens": float(settled["output_tokens"].mean())}


def _load_pyfunc(folder: str) -> PlanModel:
    """What MLflow calls to load the model."""
    home = Path(folder)
    return PlanModel(
        Plan.read(home / "plan.json"),
        LatencyModel.read(home / "latency.json"),
        Workload.read(home / "workload.json"),
    )
