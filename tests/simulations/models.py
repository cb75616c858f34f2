"""Latency models, plans and workloads that the tests share."""

from __future__ import annotations

from typing import Any

from serving.plan import EngineArgs, Plan, Slo, Variant
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.traffic import LogNormal, Poisson, Workload

ENGINE = EngineArgs(max_model_len=4096, max_num_seqs=64, max_num_batched_tokens=2048)


def latency(**changes: Any) -> LatencyModel:
    """An 8B model on one GPU, roughly."""
    fields: dict[str, Any] = {
        "variant": "bf16",
        "base_s": 0.001,
        "per_seq_s": 1e-5,
        "floor_s": 0.0045,
        "per_token_s": 2.4e-5,
        "per_kv_token_s": 2e-8,
        "step_overhead_s": 4e-4,
        "request_overhead_s": 0.003,
        "kv_blocks": 20_000,
        "cold_start": ColdStart(schedule_s=2, pull_s=30, start_s=88, source="assumed"),
        "fitted_range": FittedRange(prefill_tokens=8192, decode_seqs=256, kv_tokens=300_000),
        "n_steps": 1000,
        "source": "made up for tests",
    }
    return LatencyModel(**(fields | changes))


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "name": "tested",
        "variant": Variant(name="bf16", model="somewhere"),
        "engine": ENGINE,
        "slo": Slo(),
    }
    if "hpa" not in changes:
        fields["replicas"] = 1
    return Plan(**(fields | changes))


def workload(rate_rps: float = 5.0, duration_s: float = 600.0, **changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "arrivals": Poisson(rate_rps=rate_rps),
        "prompt_tokens": LogNormal(median_tokens=300, mean_tokens=500, max_tokens=2000),
        "output_tokens": LogNormal(median_tokens=100, mean_tokens=150, max_tokens=1000),
        "duration_s": duration_s,
    }
    return Workload(**(fields | changes))
