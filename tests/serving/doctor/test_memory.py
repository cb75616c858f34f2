"""Out of memory or not: the arithmetic, against measured engines, and remedies that hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.doctor.headroom import Trial, head_room, remedies
from serving.doctor.machine import Machine
from serving.doctor.memory import GIB, Budget
from serving.doctor.model import Shape, Weights
from serving.plan import EngineArgs
from tests.serving.doctor.machines import (
    BF16_8B,
    LLAMA_8B,
    bundle,
    card_24gb,
    h100,
    h100x8,
    machine,
)

MEASURED = Path(__file__).resolve().parents[3] / "experiments" / "results" / "h100"


LLAMA_1B = LLAMA_8B.model_copy(
    update={"kv_layers": 16, "head_dim": 64, "hidden": 2048, "intermediate": 8192}
)
LLAMA_70B = LLAMA_8B.model_copy(update={"kv_layers": 80, "hidden": 8192, "intermediate": 28672})
SHAPES = {6_979_321_856: LLAMA_8B, 973_078_528: LLAMA_1B, 68_451_041_280: LLAMA_70B}
"""By the parameters of their layers' matrices."""


def engines() -> dict[str, tuple[Shape, EngineArgs, int, int]]:
    """Shape, arguments, bytes of weights and tokens of KV cache of each engine that ran on H100s."""
    found = {}
    for path in sorted(MEASURED.rglob("measurement.json")):
        told = json.loads(path.read_text())
        cost, replica = told.get("cost"), told["replica"]
        if not cost or not replica["kv_blocks"]:
            continue
        shape = SHAPES[cost["linear_params"]]
        width = 4 if told["engine"]["dtype"] == "float32" else 2
        embedding = cost.get("embedding_bytes", shape.vocabulary * shape.hidden * width)
        weights = cost["weight_bytes"] + embedding
        tokens = replica["kv_blocks"] * replica["block_size_tokens"]
        found[f"{told['variant']['name']}-{tokens}"] = (
            shape,
            EngineArgs.model_validate(told["engine"]),
            weights,
            tokens,
        )
    return found


def test_the_budget_is_that_of_engines_that_ran() -> None:
    measured = engines()
    assert len(measured) >= 7
    assert {engine.tensor_parallel_size for _, engine, _, _ in measured.values()} == {1, 2}
    for name, (shape, engine, weights, tokens) in measured.items():
        of = Weights(served_bytes=weights, file_bytes=weights, plain=True, source="measured")
        budget = Budget.of(shape, of, engine, h100().memory_bytes)
        ours = budget.kv_room / budget.kv_per_token
        # What a step needs is assumed on the safe side, and by little.
        assert 0.98 * tokens < ours <= 1.001 * tokens, name


def test_24_gb_hold_an_8b_model_and_a_small_batch() -> None:
    of = bundle(EngineArgs(max_model_len=8192, max_num_seqs=32, gpu_memory_utilization=0.9))
    found = head_room(card_24gb(), of)
    assert found.status == "warn"
    assert "5 of 32 requests of 8192 tokens; beyond that vLLM preempts" in found.says
    assert found.remedy.startswith("max_num_seqs 5; max_model_len ")
    order = ["max_num_seqs", "max_model_len", "kv_cache_dtype fp8", "INT", "--cpu-offload-gb"]
    order += ["--kv-offloading-size", "tensor_parallel_size"]
    places = [found.remedy.find(remedy) for remedy in order if remedy in found.remedy]
    assert places == sorted(places)
    assert "tensor_parallel_size 4" in found.remedy


def test_weights_that_do_not_fit_fail_with_what_would() -> None:
    large = BF16_8B.model_copy(update={"served_bytes": 2 * BF16_8B.served_bytes})
    found = head_room(card_24gb(), bundle(weights=large))
    assert found.status == "fail"
    assert "GiB short" in found.says
    assert "max_num_seqs" not in found.remedy  # no batch is small enough
    assert "an INT4 variant" in found.remedy
    assert "--cpu-offload-gb" in found.remedy
    # What is quantized already is not told to quantize.
    packed = large.model_copy(update={"plain": False})
    assert "INT" not in head_room(card_24gb(), bundle(weights=packed)).remedy


def test_one_request_that_does_not_fit_fails() -> None:
    engine = EngineArgs(max_model_len=131072, max_num_seqs=1, gpu_memory_utilization=0.9)
    found = head_room(card_24gb(), bundle(engine))
    assert found.status == "fail"
    assert "not one request fits" in found.says


def test_a_fixed_kv_cache_takes_no_share_but_must_fit() -> None:
    small = bundle(EngineArgs(kv_cache_memory_bytes=4 * GIB, gpu_memory_utilization=0.01))
    assert head_room(card_24gb(), small).status == "pass"
    large = bundle(EngineArgs(kv_cache_memory_bytes=8 * GIB))
    found = head_room(card_24gb(), large)
    assert found.status == "fail"
    assert "GiB short" in found.says


def test_without_gpu_ram_counts() -> None:
    assert head_room(machine(), bundle()).status == "pass"
    assert head_room(machine(memory_available_bytes=GIB), bundle()).status == "fail"


def test_what_is_not_known_is_not_judged() -> None:
    assert head_room(h100x8(), None).status == "skip"
    assert head_room(h100x8(), bundle(shape=None)).status == "skip"
    found = head_room(h100x8(), bundle(weights=None))
    assert found.status == "skip"
    assert "hf download" in found.remedy


ENGINES = st.builds(
    lambda length, seqs, share, fp8: EngineArgs(
        max_model_len=length,
        max_num_seqs=seqs,
        gpu_memory_utilization=share,
        kv_cache_dtype="fp8" if fp8 else None,
    ),
    st.integers(16, 200_000),
    st.integers(1, 2000),
    st.floats(0.5, 1.0),
    st.booleans(),
)
MACHINES = st.sampled_from([h100x8(), card_24gb()])


@given(ENGINES, MACHINES)
@settings(max_examples=60, deadline=None)
def test_every_number_that_is_advised_fits_and_the_next_does_not(
    engine: EngineArgs, host: Machine
) -> None:
    trial = Trial(LLAMA_8B, BF16_8B, engine, host.gpus[0].memory_bytes)
    if trial.fits():
        return
    advised = dict(
        found.groups()
        for remedy in remedies(trial)
        if (found := re.match(r"(max_\w+|tensor_parallel_size) (\d+)$", remedy))
    )
    for name, text in advised.items():
        value = int(text)
        assert trial.fits(**{name: value})
        if name == "tensor_parallel_size":
            assert not trial.fits(**{name: value // 2})
        else:
            step = 16 if name == "max_model_len" else 1
            assert not trial.fits(**{name: value + step})


@given(ENGINES, st.integers(4, 400))
@settings(max_examples=60, deadline=None)
def test_the_budget_adds_up(engine: EngineArgs, memory_gib: int) -> None:
    budget = Budget.of(LLAMA_8B, BF16_8B, engine, memory_gib * GIB)
    left = budget.limit - budget.weights - budget.step
    assert budget.kv_room - budget.over == left
    assert budget.held * budget.kv_per_token * engine.max_model_len <= budget.kv_room
    larger = Budget.of(LLAMA_8B, BF16_8B, engine, (memory_gib + 1) * GIB)
    assert larger.held >= budget.held


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        # Llama-3-8B: 32 layers, 8 heads of 128, keys and values of 2 bytes.
        ({"num_key_value_heads": 8, "num_hidden_layers": 32}, 131072),
        # Without groups every head has its own.
        ({"num_hidden_layers": 32}, 524288),
        # Layers of linear attention keep no token.
        (
            {
                "num_key_value_heads": 8,
                "num_hidden_layers": 4,
                "layer_types": [*["linear_attention"] * 3, "full_attention"],
            },
            4096,
        ),
        # DeepSeek-V3's latent attention: 512 + 64 values in each of 61 layers.
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 70272),
    ],
)
def test_the_kv_cache_of_published_shapes(config: dict[str, object], per_token: int) -> None:
    common = {"num_attention_heads": 32, "hidden_size": 4096, "vocab_size": 128256}
    shape = Shape.of(common | config)
    assert shape is not None
    assert shape.kv_bytes_per_token(EngineArgs()) == per_token
    nested = Shape.of({"text_config": common | config})
    assert nested == shape


def test_gpus_share_heads_until_each_has_one() -> None:
    per_gpu = [
        LLAMA_8B.kv_bytes_per_token(EngineArgs(tensor_parallel_size=gpus)) for gpus in (1, 4, 8, 16)
    ]
    assert per_gpu == [131072, 32768, 16384, 16384]
    assert LLAMA_8B.kv_bytes_per_token(EngineArgs(kv_cache_dtype="fp8")) == 65536
    assert LLAMA_8B.kv_bytes_per_token(EngineArgs(dtype="float32")) == 262144


def test_a_config_that_says_too_little() -> None:
    assert Shape.of({"hidden_size": 4}) is None
    assert Shape.of({}) is None
