"""What a run made of the device: how far its steps are from what device and model allow.

The roofline (Williams, Waterman & Patterson 2009, doi 10.1145/1498765.1498785): a step that moves b
bytes and computes f operations takes at least max(b / bandwidth, f / peak). The device's ceilings are
measured (ceilings.py), the model's cost is counted (model_cost.py).

    MBU     bytes of weights and KV cache read per second / bandwidth
            (Agarwal et al., LLM Inference Performance Engineering, Databricks 2023)
    MFU     operations of the model per second / peak (Chowdhery et al., PaLM, 2022, appendix B)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan

import pandas as pd

from serving.errors import InputError
from workbench.measure.ceilings import Ceilings, ceilings, measure_ceilings
from workbench.measure.model_cost import ModelCost

__all__ = [
    "Ceilings",
    "ModelCost",
    "ceilings",
    "joules_per_token",
    "measure_ceilings",
    "usd_per_million_tokens",
    "utilisation",
]


def utilisation(
    steps: pd.DataFrame,
    cost: ModelCost,
    ceilings: Ceilings,
    dtype: str | None = None,
    tensor_parallel_size: int = 1,
) -> dict[str, float | str]:
    """How near the engine's steps came to the ceilings, per device and over the busy time.

        bytes  = weight_bytes x steps + kv_bytes_per_token x sum(kv_tokens - prefill_tokens)
        flops  = flops_per_token x tokens + flops_per_sample x samples + per pair x pairs
        mbu    = bytes / busy time / bandwidth          mfu = flops / busy time / peak
        roofline_share = sum over steps of max(bytes / bandwidth, flops / peak) / busy time

    tokens are those of prefills and decodes, samples one per sequence and step, pairs those of a
    decoding sequence with its cache and n (n + 1) / 2 of a prefill of n. Steps do not say how prefill
    tokens fall to requests: even shares are the least there can be, and what the chunks of a long
    prompt attend to in earlier ones is not counted: of attention it is a floor.
    Attention and head are held against the same peak as the layers, where these compute in 8 bits too.

    A model that fits a CPU's last cache is not held back by the memory: its mbu may exceed 1.

    Args:    steps: as in Measurement.steps; busy time is step_s and gap_s together.
             dtype: whose peak counts; None is the cost's own. Where it was not measured mfu and
                 roofline_share are NaN and bound is "unknown".
             tensor_parallel_size: devices that share each step; ceilings are those of one.
    Returns: bandwidth_bytes_per_s and flops_per_s (achieved), mbu, mfu, roofline_share, and bound:
             "memory" or "compute", whichever takes longer at its ceiling over all steps.
    """
    prefill, decode = steps["prefill_tokens"], steps["decode_seqs"]
    requests = steps["prefill_requests"]
    pairs = steps["kv_tokens"] - prefill + prefill * (prefill / requests.clip(lower=1) + 1) / 2
    moved_bytes = (
        cost.weight_bytes + cost.kv_bytes_per_token * (steps["kv_tokens"] - prefill)
    ) / tensor_parallel_size
    flops = (
        cost.flops_per_token * (prefill + decode)
        + cost.flops_per_sample * (requests + decode)
        + cost.attention_flops_per_pair * pairs
    ) / tensor_parallel_size
    busy_s = float(steps["step_s"].sum() + steps["gap_s"].fillna(0.0).sum())
    bandwidth, flops_per_s = (
        (float(moved_bytes.sum()) / busy_s, float(flops.sum()) / busy_s) if busy_s else (nan, nan)
    )
    peak = ceilings.flops_per_s.get(dtype or cost.compute_dtype, nan)
    memory_s, compute_s = moved_bytes / ceilings.bandwidth_bytes_per_s, flops / peak
    attainable_s = memory_s.where(memory_s > compute_s, compute_s).sum(skipna=False)
    bound = "memory" if memory_s.sum() > compute_s.sum() else "compute"
    return {
        "bandwidth_bytes_per_s": bandwidth,
        "mbu": bandwidth / ceilings.bandwidth_bytes_per_s,
        "flops_per_s": flops_per_s,
        "mfu": flops_per_s / peak,
        "roofline_share": float(attainable_s) / busy_s if busy_s else nan,
        "bound": "unknown" if peak != peak or not busy_s else bound,
    }


def joules_per_token(telemetry: Mapping[str, float], output_tokens: float) -> float:
    """Energy of all GPUs per generated token; NaN of none.

    Args:    telemetry: what telemetry.summarise said of the window in which the tokens were made.
    """
    return telemetry["energy_j"] / output_tokens if output_tokens else nan


def usd_per_million_tokens(usd_per_hour: float, output_tokens_per_s: float) -> float:
    """Price of a million generated tokens at a rate that lasts; infinite at a rate of 0.

    Raises:  InputError: a negative price or rate.
    """
    if usd_per_hour < 0 or output_tokens_per_s < 0:
        raise InputError(
            f"usd_per_hour(={usd_per_hour}) and output_tokens_per_s(={output_tokens_per_s})"
            " must be >= 0",
            remedy="Check the price and the measurement.",
        )
    return usd_per_hour / 3600 / output_tokens_per_s * 1e6 if output_tokens_per_s else inf
