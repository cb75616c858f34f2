"""Checkpoints in and out: what is refused, and that nothing half written takes a name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from serving.errors import InputError, ModelError
from workbench.compress.checkpoint import load, written


def copy_of(model: Path, to: Path) -> Path:
    shutil.copytree(model, to)
    return to


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_pretrained"):
        load(tmp_path)


def test_damaged_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    broken = copy_of(tiny, tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cannot load model.*broken"):
        load(broken)


def test_weights_that_are_not_there_are_named(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    holed = copy_of(tiny, tmp_path / "holed")
    state = load_file(holed / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, holed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj"):
        load(holed)


def test_a_quantized_model_is_no_parent(tiny: Path, tmp_path: Path) -> None:
    quantized = copy_of(tiny, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantized already") as error:
        load(quantized)
    assert "quantize last" in error.value.remedy


def test_a_damaged_config_is_refused(tiny: Path, tmp_path: Path) -> None:
    damaged = copy_of(tiny, tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is damaged"):
        load(damaged)


def test_nothing_half_written_takes_the_name(tmp_path: Path) -> None:
    def fail() -> None:
        with written(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="free"), written(tmp_path / "out", needed_bytes=10**18):
        pass
