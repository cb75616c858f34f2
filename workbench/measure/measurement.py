"""A Measurement: what came of one workload on one variant, with its evidence.

Definitions are those of `vllm bench serve` (vllm/benchmarks/serve.py, calculate_metrics), so that
results compare:

    ttft_s                  first chunk with content - send
    e2e_s                   last chunk with content - send
    tpot_s                  (e2e_s - ttft_s) / (output tokens - 1); none for a single token
    itl_s                   gaps between chunks, pooled over requests
    duration_s              start of the run (here: end of warm-up) to the last chunk of all
    request_throughput_rps  successful requests / duration_s
    output_tokens_per_s     their output tokens, by the server's usage / duration_s
    total_tokens_per_s      prompt and output tokens / duration_s
    goodput_rps             requests that meet every limit (tpot_s of a single token is 0) / duration_s
    percentiles             linear interpolation, over successful requests only

`..._from_schedule_s` count from the scheduled time instead of the send: no coordinated omission even
where the client was late.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from serving.errors import InputError
from serving.plan import EngineArgs, Slo, Variant
from serving.values import one_line
from simulations.traffic import ClosedLoop, Constant, Day, Gamma, Poisson, Workload
from workbench.measure.engine import ReplicaInfo
from workbench.measure.environment import Environment

__all__ = ["Environment", "Measurement", "Mode", "ReplicaInfo", "frame"]

Mode = Literal["offline", "server"]
SCHEMA_VERSION = 1
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
            decoding sequences read kv_tokens - prefill_tokens), running, waiting (both after it).
        invalid: reasons why it must not be trusted; empty = valid.
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

    @property
    def batch(self) -> int | None:
        """Concurrency of a closed loop."""
        arrivals = self.workload.arrivals
        return arrivals.concurrency if isinstance(arrivals, ClosedLoop) else None

    @property
    def rate_rps(self) -> float | None:
        """Offered rate of an open loop with a constant mean rate; peak rate of a day."""
        arrivals = self.workload.arrivals
        if isinstance(arrivals, Day):
            return arrivals.peak_rps
        return arrivals.rate_rps if isinstance(arrivals, Constant | Poisson | Gamma) else None

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

    def summary(self, slo: Slo | None = None) -> dict[str, float]:
        """The metrics of `vllm bench serve`; goodput_rps where an SLO is given. NaN: not observed."""
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
            **_spread("ttft", done["ttft_s"].to_numpy()),
            **_spread("tpot", done["tpot_s"].dropna().to_numpy()),
            **_spread("itl", itl_s),
            **_spread("e2e", done["e2e_s"].to_numpy()),
            "send_lateness_p99_s": _percentile(lateness_s, 99),
        }
        if slo is not None:
            found["goodput_rps"] = float(_meets(done, slo.limits()).sum()) / duration_s
        return found

    def write(self, folder: Path) -> Path:
        """Write requests.parquet, steps.parquet and, last and whole, measurement.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "measurement.json").unlink(missing_ok=True)
        self.requests.to_parquet(folder / "requests.parquet", index=False)
        self.steps.to_parquet(folder / "steps.parquet", index=False)
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
            if head.get("schema_version") != SCHEMA_VERSION:
                raise InputError(
                    f"{folder} has schema_version(={head.get('schema_version')!r}),"
                    f" this version reads {SCHEMA_VERSION}",
                    remedy=_REWRITE,
                )
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
        return f"<b>{self.name}</b> ({verdict})" + frame([self]).T.to_html(header=False)


def frame(measurements: Sequence[Measurement], slo: Slo | None = None) -> pd.DataFrame:
    """One row per measurement: name, variant, mode, batch or rate_rps, valid, and its summary."""
    rows: list[Mapping[str, Any]] = [
        {
            "name": m.name,
            "variant": m.variant.name,
            "mode": m.mode,
            "batch": m.batch,
            "rate_rps": m.rate_rps,
            "valid": not m.invalid,
            **m.summary(slo),
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
