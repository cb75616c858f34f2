"""Quantization: files shrink as they should, and what cannot be is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serving.errors import InputError, ModelError
from tests.workbench.compress.conftest import tiny_model
from workbench.compress import machine
from workbench.compress.checkpoint import load, size_bytes
from workbench.compress.machine import Needs, check, missing
from workbench.compress.quantize import SCHEMES, quantize
from workbench.compress.sparsify import sparsify, zero_share
from workbench.compress.texts import Seen

EMBEDDING_BYTES = 2048 * 256 * 2


def layer_bytes(folder: Path) -> int:
    """Bytes without the embeddings, which keep their type."""
    return size_bytes(folder) - EMBEDDING_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("int8-gptq", 8),
        ("int8-smoothquant", 8),
        ("int4-gptq", 4),
        ("int4-awq", 4),
        ("fp8", 8),
        ("fp8-dynamic", 8),
        ("fp8-kv", 16),
    ],
)
def test_weights_shrink_by_their_bits(tiny: Path, tmp_path: Path, scheme: str, bits: int) -> None:
    told: list[float] = []
    out = quantize(
        tiny,
        tmp_path / scheme,
        scheme=scheme,
        calibration_sequences=4,
        on_progress=lambda doing, share: told.append(share),
    )
    ratio = layer_bytes(out) / layer_bytes(tiny)
    # Scales and zero points of one number per row or group come on top.
    assert bits / 16 <= ratio < bits / 16 + 0.06
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert told == sorted(told)
    assert told[-1] <= 1
    assert bool(len(Seen.read(out).hashes)) == SCHEMES[scheme].calibrated


@pytest.mark.parametrize(("scheme", "bits"), [("fp32", 32), ("fp16", 16), ("bf16", 16)])
def test_a_cast_is_exact_where_bits_allow(
    tiny: Path, tmp_path: Path, scheme: str, bits: int
) -> None:
    out = quantize(tiny, tmp_path / scheme, scheme=scheme)
    assert size_bytes(out) == pytest.approx(size_bytes(tiny) * bits / 16, rel=0.01)
    parent, cast = load(tiny)[0], load(out)[0]
    assert str(cast.dtype) == f"torch.{SCHEMES[scheme].cast}"
    worst = max(
        float((a.float() - b.float()).abs().max())
        for a, b in zip(parent.parameters(), cast.parameters(), strict=True)
    )
    # Half precision has more digits than bfloat16, but loses what is below 6e-5.
    assert worst <= (1e-6 if scheme == "fp16" else 0)


def test_an_unknown_scheme_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scheme\(='int3'\)") as error:
        quantize(tiny, tmp_path / "out", scheme="int3")
    assert "int4-awq" in error.value.remedy


def test_groups_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    odd = tiny_model(tmp_path / "odd", intermediate_size=192)
    with pytest.raises(InputError, match=r"down_proj has 192 inputs, no multiple of 128"):
        quantize(odd, tmp_path / "out", scheme="int4-gptq")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("scheme", ["bnb-int8", "bnb-nf4"])
def test_bitsandbytes_without_a_gpu_is_refused(tiny: Path, tmp_path: Path, scheme: str) -> None:
    with pytest.raises(InputError, match="on an NVIDIA GPU, and there is none"):
        quantize(tiny, tmp_path / "out", scheme=scheme)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_quantized_is_not_quantized_again(tiny: Path, tmp_path: Path) -> None:
    once = quantize(tiny, tmp_path / "once", scheme="int8-gptq", calibration_sequences=2)
    with pytest.raises(ModelError, match="quantized already"):
        quantize(once, tmp_path / "twice", scheme="int4-gptq")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "algorithm"), [("2:4", "sparsegpt"), ("unstructured", "wanda")]
)
def test_half_of_the_layers_weights_become_zero_and_nothing_else(
    tiny: Path, tmp_path: Path, pattern: str, algorithm: str
) -> None:
    out = sparsify(
        tiny,
        tmp_path / "out",
        pattern=pattern,  # type: ignore[arg-type]
        algorithm=algorithm,  # type: ignore[arg-type]
        calibration_sequences=4,
    )
    assert zero_share(out) == pytest.approx(0.5, abs=0.01)
    assert zero_share(tiny) < 0.01
    parent, sparse = load(tiny)[0], load(out)[0]
    assert torch.equal(parent.model.embed_tokens.weight, sparse.model.embed_tokens.weight)
    assert size_bytes(out) == pytest.approx(size_bytes(tiny), rel=0.01)
    if pattern == "2:4":
        weight = sparse.model.layers[0].mlp.up_proj.weight
        assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2


def test_a_share_that_cannot_be_is_refused(tiny: Path, tmp_path: Path) -> None:
    for sparsity, pattern in ((1.0, "unstructured"), (0.3, "2:4")):
        with pytest.raises(InputError, match=f"sparsity\\(={sparsity:g}\\)"):
            sparsify(tiny, tmp_path / "out", sparsity=sparsity, pattern=pattern)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "scheme", "says"),
    [
        (None, "int8-gptq", None),
        (None, "fp8", "compute capability 8.9, and there is none"),
        (None, "bnb-nf4", "compute capability 7.5, and there is none"),
        (("T4", (7, 5)), "int8-gptq", None),
        (("T4", (7, 5)), "bf16", "8.0, and T4 has 7.5"),
        (("A100", (8, 0)), "fp8-dynamic", "8.9, and A100 has 8.0"),
        (("H100", (9, 0)), "fp8", None),
    ],
)
def test_a_machine_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
    gpu: tuple[str, tuple[int, int]] | None,
    scheme: str,
    says: str | None,
) -> None:
    monkeypatch.setattr(machine, "_gpu", lambda: gpu)
    lacks = missing(SCHEMES[scheme].needs)
    assert (lacks is None) if says is None else (lacks is not None and says in lacks)
    if says is not None:
        with pytest.raises(InputError, match="cannot run on this machine"):
            check(scheme, SCHEMES[scheme].needs)


def test_a_cpu_without_avx512_and_a_missing_package_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_gpu", lambda: None)
    monkeypatch.setattr(machine, "_has_avx512", lambda: False)
    assert "AVX-512" in str(missing(SCHEMES["fp8-kv"].needs))
    assert "no_such_package" in str(missing(Needs(gpu=(7, 5), package="no_such_package")))
