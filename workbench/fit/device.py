"""A latency model from published figures, for who has no such device: assumed, and marked so.

What a step must move and compute is counted (`ModelCost`); what the device can do is its data sheet's
times an efficiency that is stated. Everything that is made with such a model carries a doubt.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from serving.errors import InputError
from serving.plan import EngineArgs
from serving.values import Value
from simulations.latency import ColdStart, FittedRange, LatencyModel
from workbench.fit.graphs import sizes_up_to
from workbench.measure.model_cost import ModelCost

_BLOCK_TOKENS = 16
_DISK_BYTES_PER_S = 2e9


class DeviceCard(Value):
    """What a vendor says of one device. Operations without structured sparsity."""

    name: str
    memory_gib: float = Field(gt=0)
    bandwidth_gb_per_s: float = Field(gt=0)
    tflops: dict[str, float]
    """By the type of the factors, as in Ceilings.flops_per_s."""
    source: str


class Efficiency(Value):
    """What software reaches of a data sheet, and what the host takes.

    Defaults lie below what was fitted to an H100 (experiments/LOG.md, "Step-time forms": 0.84 to 0.95
    of the bandwidth, 0.62 of the BF16 peak, 1.1 ms and 9 us on the host) and within what is published
    for other devices (0.55 to 0.85 of the bandwidth: Agarwal et al., LLM Inference Performance
    Engineering, Databricks 2023; 0.4 to 0.6 of the peak: Chowdhery et al., PaLM, 2022).
    """

    bandwidth: float = Field(0.8, gt=0, le=1)
    flops: float = Field(0.55, gt=0, le=1)
    base_s: float = Field(1.5e-3, ge=0)
    per_seq_s: float = Field(1e-5, ge=0)
    step_overhead_s: float = Field(2e-4, ge=0)
    request_overhead_s: float = Field(4e-3, ge=0)
    response_overhead_s: float = Field(1.5e-3, ge=0)
    reserved_gib: float = Field(2.0, ge=0)
    """Of memory, for activations and CUDA graphs."""
    start_s: float = Field(75.0, ge=0)
    """Process, compile and warm-up; weights are read at 2 GB/s besides."""


CARDS: Final = {
    card.name: card
    for card in (
        DeviceCard(
            name="h100",
            memory_gib=79.1,
            bandwidth_gb_per_s=3350,
            tflops={
                "float32": 67,
                "float16": 989,
                "bfloat16": 989,
                "float8_e4m3": 1979,
                "int8": 1979,
            },
            source="NVIDIA H100 Tensor Core GPU data sheet, SXM",
        ),
        DeviceCard(
            name="h200",
            memory_gib=139.8,
            bandwidth_gb_per_s=4800,
            tflops={
                "float32": 67,
                "float16": 989,
                "bfloat16": 989,
                "float8_e4m3": 1979,
                "int8": 1979,
            },
            source="NVIDIA H200 Tensor Core GPU data sheet, SXM",
        ),
        DeviceCard(
            name="a100",
            memory_gib=79.2,
            bandwidth_gb_per_s=2039,
            tflops={"float32": 19.5, "float16": 312, "bfloat16": 312, "int8": 624},
            source="NVIDIA A100 80GB Tensor Core GPU data sheet, SXM",
        ),
        DeviceCard(
            name="l40s",
            memory_gib=44.5,
            bandwidth_gb_per_s=864,
            tflops={
                "float32": 91.6,
                "float16": 362,
                "bfloat16": 362,
                "float8_e4m3": 733,
                "int8": 733,
            },
            source="NVIDIA L40S data sheet",
        ),
        DeviceCard(
            name="l4",
            memory_gib=22.0,
            bandwidth_gb_per_s=300,
            tflops={
                "float32": 30.3,
                "float16": 121,
                "bfloat16": 121,
                "float8_e4m3": 242,
                "int8": 242,
            },
            source="NVIDIA L4 Tensor Core GPU data sheet (half of the figures with sparsity)",
        ),
    )
}
"""Memory as PyTorch sees it, below the nominal size."""


def card_of(name: str) -> DeviceCard:
    """The card of a device by name.

    Raises:  InputError: no such card.
    """
    if name not in CARDS:
        raise InputError(
            f"device(={name!r}) has no card",
            remedy=f"Known are {', '.join(sorted(CARDS))}; or make a DeviceCard.",
        )
    return CARDS[name]


def assume(
    card: DeviceCard,
    cost: ModelCost,
    engine: EngineArgs,
    *,
    variant: str,
    efficiency: Efficiency | None = None,
) -> LatencyModel:
    """A latency model by the roofline of a data sheet; nothing of it was measured.

        floor      weight_bytes / bandwidth           per token   flops_per_token / peak
        per KV token  kv_bytes_per_token / bandwidth  attention   flops per pair / peak

    The KV cache is what is left of the memory beside the weights. Over several devices all of it is
    shared out evenly, and what they tell each other is not counted. The range is that of the engine's
    own limits.

    Args:    cost: of the variant as the engine serves it (`ModelCost.of`).
             efficiency: None takes the defaults.
    Raises:  InputError: the device has no figure for the type, or no room beside the weights.
    """
    assumed = efficiency or Efficiency()
    devices = engine.tensor_parallel_size
    if cost.compute_dtype not in card.tflops:
        raise InputError(
            f"device(={card.name!r}) has no figure for {cost.compute_dtype}",
            remedy=f"It has {', '.join(card.tflops)}: choose a variant that computes in one of them.",
        )
    bandwidth = devices * assumed.bandwidth * card.bandwidth_gb_per_s * 1e9
    peak = devices * assumed.flops * card.tflops[cost.compute_dtype] * 1e12
    blocks = _kv_blocks(card, cost, engine, assumed)
    room = blocks * _BLOCK_TOKENS
    said = (
        f"latency model assumed from the device card of {card.name} ({card.source}) at"
        f" {assumed.bandwidth:.0%} of its bandwidth and {assumed.flops:.0%} of its FLOP/s:"
        " nothing was measured"
    )
    return LatencyModel(
        variant=variant,
        base_s=assumed.base_s,
        per_seq_s=assumed.per_seq_s + cost.flops_per_sample / peak,
        floor_s=cost.weight_bytes / bandwidth,
        per_token_s=cost.flops_per_token / peak,
        per_kv_token_s=cost.kv_bytes_per_token / bandwidth,
        per_prefill_attention_s=cost.attention_flops_per_pair / peak,
        pad_to_tokens=() if engine.enforce_eager else sizes_up_to(engine),
        step_overhead_s=assumed.step_overhead_s,
        request_overhead_s=assumed.request_overhead_s,
        response_overhead_s=assumed.response_overhead_s,
        kv_blocks=blocks,
        block_size_tokens=_BLOCK_TOKENS,
        async_scheduling=engine.async_scheduling is not False,
        cold_start=ColdStart(
            start_s=assumed.start_s + cost.weight_bytes / devices / _DISK_BYTES_PER_S,
            load_s=cost.weight_bytes / devices / _DISK_BYTES_PER_S,
            source="assumed, as the latency model",
        ),
        fitted_range=FittedRange(
            prefill_tokens=engine.max_num_batched_tokens,
            decode_seqs=engine.max_num_seqs,
            kv_tokens=room,
            context_tokens=engine.max_model_len,
        ),
        n_steps=0,
        assumed=True,
        source=said,
        doubts=(said,),
    )


def _kv_blocks(card: DeviceCard, cost: ModelCost, engine: EngineArgs, assumed: Efficiency) -> int:
    """What fits beside the weights: vLLM's rule with a reserve in place of its profiling run."""
    if engine.kv_cache_memory_bytes is not None:
        room = float(engine.kv_cache_memory_bytes * engine.tensor_parallel_size)
    else:
        share = card.memory_gib * engine.gpu_memory_utilization - assumed.reserved_gib
        room = share * 2**30 * engine.tensor_parallel_size - cost.stored_bytes
    blocks = int(room / (cost.kv_bytes_per_token * _BLOCK_TOKENS))
    if blocks < 2:
        raise InputError(
            f"weights of {cost.stored_bytes / 2**30:.1f} GiB leave no room for a KV cache on"
            f" {engine.tensor_parallel_size} x {card.name} at"
            f" gpu_memory_utilization(={engine.gpu_memory_utilization})",
            remedy="Take a larger device, more of them (tensor_parallel_size) or a smaller variant.",
        )
    return blocks
