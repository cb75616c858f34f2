"""A checkpoint of random weights has the tensors and the size of a real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.random_weights import write_checkpoint
from serving.plan import EngineArgs, Variant
from workbench.measure.model_cost import ModelCost
from workbench.model import shipped_checkpoint


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def cost(folder: Path) -> ModelCost:
    found = ModelCost.of(Variant(name="x", model=str(folder)), EngineArgs())
    assert found is not None
    return found


def test_a_checkpoint_has_the_tensors_of_the_real_one(tmp_path: Path) -> None:
    shape = shipped_checkpoint()
    total = write_checkpoint(shape, tmp_path, device="cpu")
    made, real = tensors(tmp_path), tensors(shape)
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in real.items()}
    assert total == sum(v.nbytes for v in made.values())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(made)
    assert cost(tmp_path).weight_bytes == cost(shape).weight_bytes


def test_weights_of_8_bits_come_back_by_their_scales(tmp_path: Path) -> None:
    shape = shipped_checkpoint()
    write_checkpoint(shape, tmp_path, "bnb-int8", device="cpu")
    made = tensors(tmp_path)
    stem = "model.layers.0.mlp.down_proj"
    back = made[f"{stem}.weight"].float() * made[f"{stem}.SCB"][:, None] / 127
    assert float(back.std()) == pytest.approx(0.02, rel=0.05)
    found, whole = cost(tmp_path), cost(shape)
    assert found.compute_dtype == "int8"
    assert found.weight_bytes < whole.weight_bytes - 0.9 * whole.linear_params
