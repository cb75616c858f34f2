"""Rooflines against worked examples: a model of one layer and steps that are counted by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import inf, isnan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serving.errors import InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from workbench.measure import ceilings as module
from workbench.measure.environment import Environment, engine_threads
from workbench.measure.roofline import (
    Ceilings,
    ModelCost,
    ceilings,
    joules_per_token,
    measure_ceilings,
    usd_per_million_tokens,
    utilisation,
)
from workbench.model import shipped_checkpoint

# Linear: q 8 x 8, k and v 8 x 4, o 8 x 8, gate, up and down 8 x 16 = 192 + 384 = 576 parameters.
# Head: 32 x 8 = 256. Norms: 3 x 8 = 24.
TOY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def compressed(bits: int, *, inputs: str | None = None, group: int | None = None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "group_0": {
                "weights": {"num_bits": bits, "type": "int", "group_size": group},
                "input_activations": inputs and {"num_bits": 8, "type": inputs},
            }
        },
    }


def cost(folder: Path, engine: dict[str, Any] | None = None, **config: Any) -> ModelCost | None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TOY | config))
    return ModelCost.of(Variant(name="toy", model=str(folder)), EngineArgs(**(engine or {})))


def store(path: Path, **tensors: tuple[str, list[int]]) -> None:
    """A safetensors file that is only its header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_model_of_one_layer_by_hand(tmp_path: Path) -> None:
    assert cost(tmp_path) == ModelCost(
        weight_bytes=2 * (576 + 256 + 24),
        linear_params=576,
        head_params=256,
        embedding_bytes=2 * 256,
        attention_flops_per_pair=4 * 1 * 2 * 4,
        kv_bytes_per_token=2 * 1 * 1 * 4 * 2,
        compute_dtype="bfloat16",
        source="config.json",
    )


@pytest.mark.parametrize(
    ("quantization", "weight_bytes", "compute_dtype"),
    [
        (compressed(8, inputs="int"), 576 + 2 * 280, "int8"),
        (compressed(8, inputs="float"), 576 + 2 * 280, "float8_e4m3"),
        (compressed(4), 576 // 2 + 2 * 280, "bfloat16"),
        (compressed(4, group=8), 576 * 6 // 8 + 2 * 280, "bfloat16"),
        ({"quant_method": "fp8"}, 576 + 2 * 280, "float8_e4m3"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, 360 + 2 * 280, "bfloat16"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 576 + 2 * 280, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 324 + 2 * 280, "bfloat16"),
        (
            {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_use_double_quant": True,
            },
            297 + 2 * 280,
            "bfloat16",
        ),
    ],
)
def test_quantized_linear_layers_beside_a_head_that_is_not(
    quantization: dict[str, Any], weight_bytes: int, compute_dtype: str, tmp_path: Path
) -> None:
    found = cost(tmp_path, quantization_config=quantization)
    assert found is not None
    assert (found.weight_bytes, found.compute_dtype) == (weight_bytes, compute_dtype)
    assert found.linear_params == 576, "quantizing changes the bytes, not the operations"


@pytest.mark.parametrize(
    ("engine", "config", "weight_bytes", "kv_bytes"),
    [
        ({"dtype": "float32"}, {}, 4 * 856, 32),
        ({"dtype": "float16"}, {"dtype": "float32"}, 2 * 856, 16),
        ({}, {"dtype": "float32"}, 2 * 856, 16),
        ({}, {"dtype": None, "torch_dtype": "float16"}, 2 * 856, 16),
        ({"kv_cache_dtype": "fp8"}, {}, 2 * 856, 8),
        ({"kv_cache_dtype": "fp8_e5m2"}, {}, 2 * 856, 8),
        ({"kv_cache_dtype": "auto", "dtype": "float32"}, {}, 4 * 856, 32),
        ({"kv_cache_dtype": "bfloat16", "dtype": "float32"}, {}, 4 * 856, 16),
        ({}, {"num_key_value_heads": None}, 2 * (856 + 64), 32),
        ({}, {"head_dim": 8}, 2 * (856 + 192), 32),
    ],
)
def test_types_and_shapes(
    engine: dict[str, Any],
    config: dict[str, Any],
    weight_bytes: int,
    kv_bytes: int,
    tmp_path: Path,
) -> None:
    found = cost(tmp_path, engine, **config)
    assert found is not None
    assert (found.weight_bytes, found.kv_bytes_per_token) == (weight_bytes, kv_bytes)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["MixtralForCausalLM"]},
        {"architectures": None},
        {"sliding_window": 4096},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"quantization_config": compressed(8, inputs="int") | {"config_groups": {}}},
        {"dtype": "float8_e4m3fn"},
    ],
)
def test_what_cannot_be_told_is_none(config: dict[str, Any], tmp_path: Path) -> None:
    assert cost(tmp_path, **config) is None


def test_a_sliding_window_that_is_not_used_is_none(tmp_path: Path) -> None:
    assert cost(tmp_path, sliding_window=4096, use_sliding_window=False) is not None


@pytest.mark.parametrize("model", ["no/such-model", "not a hub id", "/no/such/folder", "."])
def test_no_config_is_none(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelCost.of(Variant(name="x", model=model), EngineArgs()) is None


def test_stored_tensors_say_more_than_the_config(tmp_path: Path) -> None:
    store(
        tmp_path / "model-1.safetensors",
        **{
            "model.embed_tokens.weight": ("BF16", [32, 8]),
            "model.layers.0.mlp.up_proj.weight": ("I8", [16, 8]),
            "model.layers.0.mlp.up_proj.weight_scale": ("BF16", [16, 1]),
        },
    )
    store(
        tmp_path / "model-2.safetensors",
        **{
            "model.layers.0.mlp.down_proj.weight_packed": ("I32", [8, 2]),
            "lm_head.weight": ("F32", [32, 8]),
        },
    )
    found = cost(tmp_path)
    assert found is not None
    # The embedding table is not read whole; the head is served in 16 bits whatever it is stored in.
    assert found.weight_bytes == 128 + 2 * 16 + 4 * 16 + 2 * 256
    assert found.source == "safetensors headers"


@pytest.mark.parametrize("stored_twice", [False, True])
def test_a_tied_table_is_read_whole_and_once(stored_twice: bool, tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": ("BF16", [32, 8])}
    if stored_twice:
        tensors["lm_head.weight"] = ("BF16", [32, 8])
    store(tmp_path / "model.safetensors", **tensors)
    found = cost(tmp_path, tie_word_embeddings=True)
    assert found is not None
    assert found.weight_bytes == 2 * 256


def test_config_and_stored_tensors_agree_on_the_shipped_model(tmp_path: Path) -> None:
    stored = ModelCost.of(Variant(name="demo", model=str(shipped_checkpoint())), EngineArgs())
    config = json.loads((shipped_checkpoint() / "config.json").read_text())
    counted = cost(tmp_path, **config)
    assert stored is not None
    assert counted is not None
    assert stored.source != counted.source
    assert stored.weight_bytes == counted.weight_bytes
    # Its table is the head too, so that a step reads every parameter.
    path = shipped_checkpoint() / "model.safetensors"
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert stored.weight_bytes == path.stat().st_size - 8 - header


# -- Utilisation ---------------------------------------------------------------------------------

BANDWIDTH = 7168.0


def limits(peak: float) -> Ceilings:
    return Ceilings(
        hardware="toy",
        device="cpu",
        bandwidth_bytes_per_s=BANDWIDTH,
        bandwidth_kernel="copy",
        flops_per_s={"bfloat16": peak},
        spread={},
        repeats=1,
        versions={},
        measured_at="2026-01-01T00:00:00+00:00",
    )


def steps() -> pd.DataFrame:
    """Prefill of 4 tokens in 0.5 s; 0.25 s later two sequences decode with 10 tokens in the cache.

    Bytes: 1712, then 1712 + 16 x 10 = 1872; 3584 in a busy second.
    Operations: 4 x 1152 + 512 + 32 x (1 + 2 + 3 + 4) = 5440, then 2 x 1152 + 2 x 512 + 32 x 10 = 3648.
    """
    return pd.DataFrame(
        {
            "step_s": [0.5, 0.25],
            "gap_s": [float("nan"), 0.25],
            "prefill_requests": [1, 0],
            "prefill_tokens": [4, 0],
            "decode_seqs": [0, 2],
            "kv_tokens": [4, 10],
        }
    )


@pytest.fixture
def toy(tmp_path: Path) -> ModelCost:
    found = cost(tmp_path)
    assert found is not None
    return found


def test_two_steps_by_hand(toy: ModelCost) -> None:
    found = utilisation(steps(), toy, limits(4 * 9088))
    assert found.pop("bound") == "memory"
    assert found == pytest.approx(
        {
            "bandwidth_bytes_per_s": 3584,
            "mbu": 0.5,
            "flops_per_s": 9088,
            "mfu": 0.25,
            "roofline_share": 0.5,
        }
    )


def test_each_step_is_bound_by_what_takes_it_longer(toy: ModelCost) -> None:
    found = utilisation(steps(), toy, limits(18176))
    assert found["roofline_share"] == pytest.approx(5440 / 18176 + 1872 / BANDWIDTH)
    assert utilisation(steps(), toy, limits(9088))["bound"] == "compute"


def test_prefills_of_one_step_share_its_tokens(toy: ModelCost) -> None:
    table = steps().head(1).assign(prefill_requests=2)
    pairs = 2 * (1 + 2)
    expected = 4 * 1152 + 2 * 512 + 32 * pairs
    assert utilisation(table, toy, limits(1))["flops_per_s"] == pytest.approx(expected / 0.5)


def test_devices_of_a_replica_share_each_step(toy: ModelCost) -> None:
    one, two = (utilisation(steps(), toy, limits(1e5), None, n) for n in (1, 2))
    for name in ("mbu", "mfu", "roofline_share"):
        assert float(two[name]) == pytest.approx(float(one[name]) / 2)


def test_without_a_peak_there_is_the_bandwidth_alone(toy: ModelCost) -> None:
    found = utilisation(steps(), toy, limits(9088), "int8")
    assert found["mbu"] == pytest.approx(0.5)
    assert found["bound"] == "unknown"
    assert isnan(float(found["mfu"]))
    assert isnan(float(found["roofline_share"]))


def test_no_steps_are_nan_and_not_an_error(toy: ModelCost) -> None:
    found = utilisation(steps().head(0), toy, limits(9088))
    assert found.pop("bound") == "unknown"
    assert all(isnan(float(value)) for value in found.values())


def test_prices() -> None:
    assert joules_per_token({"energy_j": 500.0}, 250) == 2
    assert isnan(joules_per_token({"energy_j": 500.0}, 0))
    # 1,000 tokens a second are 3.6 million an hour.
    assert usd_per_million_tokens(3.6, 1000) == pytest.approx(1.0)
    assert usd_per_million_tokens(3.6, 0) == inf
    with pytest.raises(InputError, match="-1"):
        usd_per_million_tokens(-1, 1000)


# -- Ceilings ------------------------------------------------------------------------------------


def test_best_and_spread_of_the_repeats() -> None:
    took_s = iter([9.0, *[3.0, 2.0, 4.0] * 100])
    calls = []

    def timer(kernel: Callable[[], Any]) -> float:
        calls.append(kernel())
        seconds = next(took_s)
        clock[0] += seconds
        return seconds

    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "perf_counter", lambda: clock[0])
        best_s, spread = module._best(timer, lambda: 1)
    assert len(calls) == 1 + 3, "a warm-up, and three although the time was up after the first"
    assert (best_s, spread) == (2.0, 0.5)


def test_what_is_slower_than_float32_the_device_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = {"float32": 10.0, "bfloat16": 20.0, "float16": 9.0, "int8": None, "float8_e4m3": 40.0}
    monkeypatch.setattr(
        module,
        "_matmul_peak",
        lambda _timer, _kind, dtype: peaks[dtype] and (peaks[dtype], 0.1),
    )
    monkeypatch.setattr(
        module,
        "_bandwidth_kernels",
        lambda _kind: iter([("copy", 80, "slow"), ("read", 30, "fast")]),
    )
    monkeypatch.setattr(
        module, "_best", lambda _timer, kernel: ({"slow": 4.0, "fast": 1.0}[kernel], 0.2)
    )
    done: list[tuple[str, float]] = []
    found = measure_ceilings("cpu", lambda what, share: done.append((what, share)))
    assert found.flops_per_s == {"float32": 10.0, "bfloat16": 20.0, "float8_e4m3": 40.0}
    assert (found.bandwidth_bytes_per_s, found.bandwidth_kernel) == (30, "read")
    assert found.spread == {
        **dict.fromkeys(("copy", "read"), 0.2),
        **dict.fromkeys(("float32", "bfloat16", "float8_e4m3"), 0.1),
    }
    assert found.threads == engine_threads()
    assert [share for _, share in done] == sorted(share for _, share in done)


def test_ceilings_are_kept_until_torch_or_the_threads_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = Environment.capture().versions
    kept = limits(5.0).model_copy(update={"threads": engine_threads(), "versions": versions})
    monkeypatch.setattr(module, "_CHILD", "import sys; sys.exit('no ceilings today')")
    with pytest.raises(MeasurementError, match="no ceilings today"):
        ceilings(tmp_path)
    slug = "".join(c if c.isalnum() else " " for c in Environment.capture().hardware.lower())
    kept.write(tmp_path / f"ceilings-{'-'.join(slug.split())}.json")
    assert ceilings(tmp_path) == kept
    for stale in ({"threads": engine_threads() + 1}, {"versions": {**versions, "torch": "0"}}):
        path = tmp_path / f"ceilings-{'-'.join(slug.split())}.json"
        kept.model_copy(update=stale).write(path)
        with pytest.raises(MeasurementError):
            ceilings(tmp_path)


@pytest.mark.slow
def test_ceilings_of_this_machine(tmp_path: Path) -> None:
    found = ceilings(tmp_path)
    assert found.bandwidth_bytes_per_s > 0
    assert "float32" in found.flops_per_s
    assert min(found.flops_per_s.values()) == found.flops_per_s["float32"]
    assert set(found.spread) == {"copy", "triad", "read", *found.flops_per_s}
    assert ceilings(tmp_path) == found, "measured once"
