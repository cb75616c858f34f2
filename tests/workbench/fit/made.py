"""Steps that are made from known coefficients, and measurements that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serving.plan import EngineArgs, Variant
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.traffic import ClosedLoop, LogNormal, Poisson, Workload
from workbench.measure import Environment, FakeEngine, Measurement, ReplicaInfo, measure
from workbench.model import shipped_checkpoint

ENGINE = EngineArgs(max_model_len=1024, max_num_seqs=32, max_num_batched_tokens=2048)
TRUE = {
    "base_s": 2.4e-3,
    "per_seq_s": 6e-5,
    "per_token_s": 2.5e-5,
    "per_kv_token_s": 2e-7,
}


def steps(
    n: int,
    seed: int,
    *,
    noise: float = 0.03,
    outliers: float = 0.02,
    floor_s: float = 0.0,
    attention_s: float = 0.0,
    prefill_step_s: float = 0.0,
    gap_s: float = 0.0,
    pad_to_tokens: tuple[int, ...] = (),
) -> pd.DataFrame:
    """Steps of a busy server: now and then a prefill of one or two requests."""
    rng = np.random.default_rng(seed)
    decode = rng.integers(1, 33, n)
    kv = decode * rng.integers(20, 400, n)
    requests = rng.choice([0, 0, 0, 1, 2], n)
    prefill = requests * rng.integers(16, 300, n)
    attention = prefill * (prefill / np.maximum(requests, 1) + 1) / 2
    true = latency_model(
        floor_s=floor_s,
        per_prefill_attention_s=attention_s,
        prefill_step_s=prefill_step_s,
        pad_to_tokens=pad_to_tokens,
    )
    exact = true.step_time_s(prefill, decode, kv, attention, requests)
    took = exact * np.exp(rng.normal(0, noise, n))
    took = np.where(rng.random(n) < outliers, took * rng.uniform(10, 100, n), took)
    return pd.DataFrame(
        {
            "t_s": np.cumsum(took + gap_s),
            "step_s": took,
            "gap_s": gap_s,
            "prefill_requests": requests,
            "prefill_tokens": prefill,
            "decode_seqs": decode,
            "kv_tokens": kv + prefill + decode,
            "running": decode + requests,
            "waiting": 0,
        }
    )


def measurement(table: pd.DataFrame, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "name": "made-up",
        "mode": "offline",
        "variant": Variant(name="bf16", model="somewhere"),
        "engine": ENGINE,
        "workload": Workload(
            arrivals=ClosedLoop(concurrency=8, requests=8),
            prompt_tokens=LogNormal(median_tokens=64, mean_tokens=80, max_tokens=400),
            output_tokens=LogNormal(median_tokens=64, mean_tokens=80, max_tokens=400),
        ),
        "requests": pd.DataFrame(),
        "steps": table,
        "replica": ReplicaInfo(
            engine_version="0", kv_blocks=4096, block_size_tokens=16, start_s=30.0
        ),
        "environment": environment(),
    }
    return Measurement(**(fields | changes))


def faked(workload: Workload, mode: Any, folder: Path, seed: int = 0) -> Measurement:
    variant = Variant(name="bf16", model=str(shipped_checkpoint()))
    with FakeEngine(variant, ENGINE, seed=seed) as engine:
        return measure(
            variant, workload, engine_args=ENGINE, mode=mode, folder=folder, engine=engine
        )


def poisson(rate_rps: float, seed: int = 0) -> Workload:
    return Workload(
        arrivals=Poisson(rate_rps=rate_rps),
        prompt_tokens=LogNormal(median_tokens=60, mean_tokens=90, min_tokens=4, max_tokens=400),
        output_tokens=LogNormal(median_tokens=40, mean_tokens=60, min_tokens=2, max_tokens=300),
        duration_s=60,
        seed=seed,
    )


def environment() -> Environment:
    return Environment(
        hardware="none",
        gpu_count=0,
        cpu_count=1,
        memory_gib=1.0,
        python="3",
        started_at="2026-01-01T00:00:00+00:00",
    )


def latency_model(**changes: Any) -> LatencyModel:
    fields: dict[str, Any] = {
        "variant": "bf16",
        **TRUE,
        "kv_blocks": 4096,
        "cold_start": ColdStart(start_s=30, source="assumed"),
        "fitted_range": FittedRange(prefill_tokens=1000, decode_seqs=32, kv_tokens=10_000),
        "n_steps": 100,
        "source": "made up",
    }
    return LatencyModel(**(fields | changes))


def answered(sent_s: Any, ttft_s: float) -> pd.DataFrame:
    sent = np.asarray(sent_s, dtype=float)
    return pd.DataFrame(
        {
            "sent_s": sent,
            "first_token_s": sent + ttft_s,
            "end_s": sent + ttft_s + 0.1,
            "prompt_tokens": 100,
            "output_tokens": 10,
            "counted": True,
        }
    )
