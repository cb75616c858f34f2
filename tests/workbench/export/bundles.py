"""A plan, evidence for it, and an engine that does what the evidence predicts."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import EngineArgs, Plan, Slo, Variant
from serving.values import Estimate
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.predict import predict
from simulations.result import Prediction
from simulations.traffic import Fixed, Poisson, Workload
from workbench.bundle_evidence import Evidence, digest
from workbench.measure import FakeEngine
from workbench.measure.fake import StepTime
from workbench.model import shipped_checkpoint

NOW = datetime.now(UTC).isoformat(timespec="seconds")
LOAD = Workload(
    arrivals=Poisson(rate_rps=6.0),
    prompt_tokens=Fixed(tokens=32),
    output_tokens=Fixed(tokens=16),
    duration_s=20.0,
    warmup_s=1.0,
)


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "winner",
        "variant": Variant(name="bf16", model=str(shipped_checkpoint())),
        "engine": EngineArgs(),
        "slo": Slo(),
        "hpa": HpaSpec(max_replicas=4, metrics=(pods_metric(REQUESTS_RUNNING, 8),)),
    }
    return Plan(**(values | changes))


def fake() -> FakeEngine:
    return FakeEngine(Variant(name="bf16", model="m"), EngineArgs())


def latency() -> LatencyModel:
    """Of FakeEngine."""
    step = StepTime()
    return LatencyModel(
        variant="bf16",
        base_s=step.base_s,
        per_seq_s=step.per_seq_s,
        floor_s=step.floor_s,
        per_token_s=step.per_token_s,
        per_kv_token_s=step.per_kv_token_s,
        kv_blocks=fake().replica.kv_blocks,
        block_size_tokens=fake().replica.block_size_tokens,
        cold_start=ColdStart(start_s=1.0, source="assumed"),
        fitted_range=FittedRange(prefill_tokens=512, decode_seqs=32, kv_tokens=4096),
        n_steps=0,
        source="the fake's own coefficients",
    )


def prediction() -> Prediction:
    """The twin's, for FakeEngine."""
    return predict(plan(hpa=None, replicas=1), latency(), LOAD)


def wrong(told: Prediction, factor: float, *metrics: str) -> Prediction:
    """The same with some metrics (none named: all) off by a factor."""
    changed = {
        name: Estimate(value=e.value * factor, low=e.low * factor, high=e.high * factor, n=e.n)
        if name in metrics or not metrics
        else e
        for name, e in told.metrics.items()
    }
    return told.model_copy(update={"metrics": changed})


def evidence(told: Prediction | None = None, *, of: Plan | None = None, **changes: Any) -> Evidence:
    """Of a plan, measured just now."""
    values: dict[str, Any] = {
        "plan_sha256": digest(of or plan()),
        "prediction": told or prediction(),
        "measurements": {"rate-6": {"output_tokens_per_s": 96.5}},
        "measured_at": NOW,
        "versions": {"a-server": "0"},
    }
    return Evidence(**(values | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def list_again(bundle: Path) -> None:
    """Make SHA256SUMS agree with what lies there, as somebody who meant a change would."""
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {path}\n"
        for path, content in sorted(contents(bundle).items())
        if path != "SHA256SUMS"
    ]
    (bundle / "SHA256SUMS").write_text("".join(lines))
