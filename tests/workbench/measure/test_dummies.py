"""Dummy weights have values as real ones have them, in vLLM as well."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from serving.plan import EngineArgs, Variant
from workbench.measure.dummies import VARIABLE, fill, fill_dummies, fill_where_asked
from workbench.measure.vllm_server import ServerEngine

weight_utils = pytest.importorskip("vllm.model_executor.model_loader.weight_utils")
dummy_loader = pytest.importorskip("vllm.model_executor.model_loader.dummy_loader")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int32, torch.uint8, torch.bfloat16, torch.float8_e4m3fn]
)
def test_filled_weights_are_not_zeros(dtype: torch.dtype) -> None:
    weight = torch.zeros(64, 128, dtype=dtype)
    fill(weight)
    values = weight.float()
    assert bool(values.isfinite().all())
    assert float((values == 0).float().mean()) < 0.05
    norm, scales = torch.zeros(64), torch.zeros(64, 1)
    fill(norm)
    fill(scales)
    assert set(norm.tolist()) == {1.0}
    assert len(set(scales.flatten().tolist())) == 1


@pytest.fixture
def own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (weight_utils, dummy_loader):
            if kept := getattr(module, "initialize_single_dummy_weight", None):
                patch.setattr(module, "initialize_single_dummy_weight", kept)
        yield


@pytest.mark.usefixtures("own")
def test_vllm_fills_a_layer_by_it() -> None:
    layer = torch.nn.Linear(128, 64, bias=False)
    layer.weight = torch.nn.Parameter(torch.zeros(64, 128, dtype=torch.int8), requires_grad=False)
    dummy_loader.initialize_single_dummy_weight(layer.weight)
    assert not layer.weight.any(), "vLLM's own leaves integers as they were allocated"
    fill_dummies()
    dummy_loader.initialize_single_dummy_weight(layer.weight)
    assert float((layer.weight == 0).float().mean()) < 0.05


@pytest.mark.usefixtures("own")
def test_vllms_processes_fill_where_they_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dummy_loader.initialize_single_dummy_weight
    monkeypatch.delenv(VARIABLE, raising=False)
    fill_where_asked()
    assert dummy_loader.initialize_single_dummy_weight is own
    monkeypatch.setenv(VARIABLE, "1")
    (plugin,) = metadata.entry_points(group="vllm.general_plugins", name="workbench_dummies")
    plugin.load()()
    assert dummy_loader.initialize_single_dummy_weight is fill


@pytest.mark.parametrize("load_format", [None, "dummy"])
def test_a_server_is_asked_where_its_weights_are_dummies(
    load_format: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    server = ServerEngine(
        Variant(name="bf16", model="m"), EngineArgs(load_format=load_format), folder=tmp_path
    )
    assert (VARIABLE in server._environment()) == (load_format == "dummy")
