"""Machines and models as data, for the tests of what is said of them."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

from serving.doctor import Bundle, Machine
from serving.doctor.machine import Gpu, GpuPair, RdmaPort, Space
from serving.doctor.memory import GIB
from serving.doctor.model import Model, Shape, Weights
from serving.manifests import Images, render
from serving.plan import EngineArgs, Plan, Variant
from tests.serving.plans import plan

PINNED = "vllm/vllm-openai@sha256:" + "0123456789abcdef" * 4

LLAMA_8B = Shape(
    kv_layers=32,
    kv_heads=8,
    head_dim=128,
    hidden=4096,
    intermediate=14336,
    vocabulary=128256,
    dtype="bfloat16",
)
BF16_8B = Weights(
    served_bytes=16_060_522_496, file_bytes=16_060_556_376, plain=True, source="safetensors headers"
)


def machine(**changes: Any) -> Machine:
    """A good host without a GPU."""
    values: dict[str, Any] = {
        "nvml_problem": "NVML does not start: no driver",
        "cpus": 16,
        "memory_available_bytes": 100 * GIB,
        "cache": Space(path="/cache", free_bytes=500 * GIB),
        "shm": Space(path="/dev/shm", free_bytes=8 * GIB),
        "open_files": (65536, 65536),
        "locked_memory_bytes": (-1, -1),
        "python": "3.12.3",
        "programs": {"nginx": "/usr/sbin/nginx", "kubectl": None},
        "clock_synchronised": True,
    }
    return Machine.model_validate(values | changes)


def h100(free_bytes: int | None = None) -> Gpu:
    total = int(79.18 * GIB)
    return Gpu(
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=total,
        free_bytes=total - GIB // 2 if free_bytes is None else free_bytes,
        compute_capability=(9, 0),
        nvlinks=18,
    )


def h100x8(**changes: Any) -> Machine:
    """Eight H100 behind NVSwitch, with InfiniBand."""
    pairs = [
        GpuPair(
            first=a, second=b, nvlink=True, p2p=True, path="NODE" if a // 4 == b // 4 else "SYS"
        )
        for a, b in combinations(range(8), 2)
    ]
    values: dict[str, Any] = {
        "nvml_problem": "",
        "gpus": (h100(),) * 8,
        "pairs": tuple(pairs),
        "driver": "570.124.06",
        "cuda": (12, 8),
        "rdma": tuple(
            RdmaPort(name=f"mlx5_{i}/1", state="ACTIVE", rate_gbps=400, link_layer="InfiniBand")
            for i in range(8)
        ),
    }
    return machine(**(values | changes))


def card_24gb(**changes: Any) -> Machine:
    """One consumer card."""
    total = int(23.5 * GIB)
    card = Gpu(
        name="NVIDIA GeForce RTX 4090",
        memory_bytes=total,
        free_bytes=total - GIB // 4,
        compute_capability=(8, 9),
    )
    values = {"nvml_problem": "", "gpus": (card,), "driver": "550.90", "cuda": (12, 4)}
    return machine(**(values | changes))


def pcie(*joined: tuple[int, int], p2p: bool = True, gpus: int = 4) -> Machine:
    """H100s of which only these pairs have NVLink."""
    pairs = tuple(
        GpuPair(first=a, second=b, nvlink=(a, b) in joined, p2p=p2p or (a, b) in joined, path="SYS")
        for a, b in combinations(range(gpus), 2)
    )
    return h100x8(gpus=(h100(),) * gpus, pairs=pairs)


def bundle(
    engine: EngineArgs | None = None,
    *,
    shape: Shape | None = LLAMA_8B,
    weights: Weights | None = BF16_8B,
    folder: Path | None = Path("/model"),
    chosen: Plan | None = None,
    **changes: Any,
) -> Bundle:
    """A bundle of an 8B model, measured on an H100."""
    values: dict[str, Any] = {
        "folder": Path("/bundle"),
        "plan": chosen or plan(engine=engine or EngineArgs()),
        "model": Model(folder=folder, shape=shape, weights=weights),
        "versions": {"vllm": "0.32.0", "torch": "2.11.0+cu128", "transformers": "5.17.0"},
        "hardware": "NVIDIA H100 80GB HBM3",
        "image": PINNED,
    }
    return Bundle(**(values | changes))


def written(folder: Path, *, image: str | None = PINNED, **evidence: Any) -> Path:
    """The files of a bundle that the checks read, with a model of a few tensors."""
    chosen = plan(variant=Variant(name="tiny", model="model"))
    for path, text in render(chosen, chosen=Images(vllm=image)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    chosen.write(folder / "plan.json")
    (folder / "evidence.json").write_text(json.dumps(evidence))
    config = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 100,
        "dtype": "float32",
    }
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config))
    safetensors(folder / "model" / "model.safetensors", {"a": ("F32", [10, 64]), "b": ("I8", [64])})
    return folder


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A file with these tensors, all zero."""
    width = {"F32": 4, "BF16": 2, "I8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = width[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
