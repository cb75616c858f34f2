"""A model from a data sheet: near what was measured on that device, and marked in all it touches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError
from serving.plan import EngineArgs
from simulations.limits import check_range
from workbench.fit import fit
from workbench.fit.device import CARDS, DeviceCard, Efficiency, assume, card_of
from workbench.fit.explain import check, knee_words
from workbench.fit.steps import DECODE, KV, PREFILL, SEQS, steps_of
from workbench.measure import Measurement
from workbench.measure.model_cost import ModelCost

from .made import latency_model, measurement, poisson, steps

RESULTS = Path(__file__).parents[3] / "experiments" / "results" / "h100"
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
ENGINE = EngineArgs(
    max_model_len=8192,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    gpu_memory_utilization=0.85,
)


def llama() -> ModelCost:
    cost = ModelCost.of_config(LLAMA_8B, ENGINE)
    assert cost is not None
    return cost


def test_the_h100_card_is_near_what_was_measured_on_one() -> None:
    model = assume(card_of("h100"), llama(), ENGINE, variant="llama-8b")
    measured = [
        Measurement.read(RESULTS / "batching" / f"llama-8b-kcdauto-{shape}-batch{batch}-repeat0")
        for shape in ("128x128", "1024x128")
        for batch in (1, 8, 32, 128)
    ]
    found = steps_of(measured, 0.0, np.random.default_rng(0))
    prefill, decode, kv, seqs = (found.terms[:, c] for c in (PREFILL, DECODE, KV, SEQS))
    # Not assumed for these: what the attention does, which is hidden in the measured steps.
    predicted = found.summed(model.step_time_s(prefill, decode, kv, 0.0, seqs - decode))
    ratio = predicted / found.summed(found.step_s)
    prefills = found.summed(prefill) > 0
    for kind in (prefills, ~prefills):
        assert 1 / 1.35 < np.median(ratio[kind]) < 1.35
    assert measured[0].replica.kv_blocks == pytest.approx(model.kv_blocks, rel=0.1)


def test_every_result_can_tell_that_it_is_assumed() -> None:
    model = assume(card_of("l4"), llama(), ENGINE, variant="llama-8b")
    assert model.assumed
    assert model.source == model.doubts[0]
    assert "assumed from the device card of l4" in model.doubts[0]
    assert "nothing was measured" in model.doubts[0]
    check_range(model, EngineArgs(max_model_len=4096, max_num_batched_tokens=2048), poisson(1.0))


def test_more_device_takes_less_time() -> None:
    assert sorted(CARDS) == ["a100", "h100", "h200", "l4", "l40s"]
    lone = {
        name: float(assume(card, llama(), ENGINE, variant="v").step_time_s(0, 1, 100))
        for name, card in CARDS.items()
    }
    assert sorted(lone, key=lambda name: lone[name]) == ["h200", "h100", "a100", "l40s", "l4"]
    two = ENGINE.model_copy(update={"tensor_parallel_size": 2})
    one = assume(card_of("l4"), llama(), ENGINE, variant="v")
    pair = assume(card_of("l4"), llama(), two, variant="v")
    assert pair.floor_s == pytest.approx(one.floor_s / 2)
    assert pair.kv_blocks > 2 * one.kv_blocks
    best = Efficiency(bandwidth=1, flops=1)
    assert assume(card_of("l4"), llama(), ENGINE, variant="v", efficiency=best).floor_s < 0.051


def test_what_a_card_cannot_say_is_refused() -> None:
    with pytest.raises(InputError, match=r"device\(='tpu'\) has no card. Known are a100, h100"):
        card_of("tpu")
    small = DeviceCard(
        name="small",
        memory_gib=16,
        bandwidth_gb_per_s=300,
        tflops={"bfloat16": 60},
        source="made up",
    )
    with pytest.raises(InputError, match=r"weights of 15\.0 GiB leave no room"):
        assume(small, llama(), ENGINE, variant="v")
    fp8 = llama().model_copy(update={"compute_dtype": "float8_e4m3"})
    with pytest.raises(InputError, match="has no figure for float8_e4m3"):
        assume(small, fp8, ENGINE, variant="v")


# -- in words ------------------------------------------------------------------------------------


def test_the_check_says_what_dominates_where() -> None:
    model = assume(card_of("l4"), llama(), ENGINE, variant="llama-8b")
    table = check(model).set_index("region")
    assert table.loc["decode, batch 1", "bound"] == "memory-bound (weights)"
    assert table.loc["prefill of 512 tokens", "bound"] == "compute-bound (matrices)"
    fullest = next(name for name in table.index if "KV tokens" in name)
    assert table.loc[fullest, "kv"] > table.loc["decode, batch 1", "kv"]
    shares = table[["host", "weights", "compute", "kv", "attention"]].sum(axis=1)
    assert np.allclose(shares, 1)
    assert "memory-bound (weights); 97% reading the weights" in table["words"].iloc[0]
    assert "steps of up to 298 tokens are free" in knee_words(model)


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"base_s": 1.0, "floor_s": 1e-4}, "host-bound"),
        ({"base_s": 1.0}, "bound by fixed costs (host and weights were not told apart)"),
        ({"per_kv_token_s": 1e-3}, "memory-bound (KV cache)"),
        ({"per_token_s": 1.0}, "compute-bound (matrices)"),
    ],
)
def test_each_bound_is_named(changes: dict[str, float], bound: str) -> None:
    table = check(latency_model(**changes)).set_index("region")
    assert table.loc["decode, batch 32", "bound"] == bound


def test_regions_lie_within_what_was_fitted() -> None:
    table = steps(300, 1)
    model = fit([measurement(table)], draws=0)
    regions = check(model)["region"].tolist()
    largest = table["prefill_tokens"].max()
    assert f"decode, batch {table['decode_seqs'].max()}" in regions
    assert f"prefill of {min(512, largest)} tokens" in regions
    assert not any("batch 128" in region for region in regions)
