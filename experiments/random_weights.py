"""A checkpoint of random weights of a model's shape, which costs what real ones cost.

    python experiments/random_weights.py SHAPE OUT [bf16|bnb-nf4|bnb-int8]

SHAPE is a folder with the config.json of a Llama; OUT becomes a checkpoint that vLLM loads. True for
speed, size and power, meaningless for quality. vLLM's `dummy` format: workbench/measure/dummies.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_STD = 0.02
_NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
_INT8 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": False,
    "load_in_8bit": True,
    "llm_int8_threshold": 6.0,
}
Tensors = dict[str, torch.Tensor]


def write_checkpoint(shape: Path, out: Path, kind: str = "bf16", device: str = "cuda") -> int:
    """Write a checkpoint of random weights, a file per layer, and say how many bytes it has.

    Args:    kind: bf16, bnb-nf4 (double quantization) or bnb-int8, as transformers would write them.
    """
    config = json.loads((shape / "config.json").read_text())
    quantize: dict[str, tuple[dict[str, Any], Callable[[str, torch.Tensor], Tensors]]] = {
        "bnb-nf4": (_NF4, _nf4),
        "bnb-int8": (_INT8, _int8),
    }
    out.mkdir(parents=True, exist_ok=True)
    for path in shape.glob("tokenizer*"):
        shutil.copy(path, out)
    if kind in quantize:
        config["quantization_config"], store = quantize[kind]
    where: dict[str, str] = {}
    total = 0
    for i, (matrices, others) in enumerate(_layers(config)):
        file = f"model-{i:05}.safetensors"
        tensors: Tensors = {}
        for name, sides in matrices.items():
            weight = torch.randn(sides, dtype=torch.bfloat16, device=device) * _STD
            tensors |= store(name, weight) if kind in quantize else {name: weight}
        for name, sides in others.items():
            ones = torch.ones(sides, dtype=torch.bfloat16, device=device)
            tensors[name] = ones if len(sides) == 1 else torch.randn_like(ones) * _STD
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, out / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    (out / "config.json").write_text(json.dumps(config, indent=1))
    return total


def _layers(
    config: dict[str, Any],
) -> Iterator[tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]]:
    """Names and sides of the matrices that schemes quantize, and of the rest, layer by layer."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = (config[f"num_{of}_heads"] * head_dim for of in ("attention", "key_value"))
    for i in range(config["num_hidden_layers"]):
        attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden)}
        attention["o"] = (hidden, queries)
        mlp = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
        at = f"model.layers.{i}"
        yield (
            {f"{at}.self_attn.{name}_proj.weight": sides for name, sides in attention.items()}
            | {f"{at}.mlp.{name}_proj.weight": sides for name, sides in mlp.items()},
            {f"{at}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")},
        )
    ends = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    if not config.get("tie_word_embeddings"):
        ends["lm_head.weight"] = (config["vocab_size"], hidden)
    yield {}, {**ends, "model.norm.weight": (hidden,)}


def _nf4(name: str, weight: torch.Tensor) -> Tensors:
    # Wanted for this kind alone, and not installed where there is no GPU.
    functional = import_module("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    said = state.as_dict(packed=True)
    return {name: packed, **{f"{name}.{key}": tensor for key, tensor in said.items()}}


def _int8(name: str, weight: torch.Tensor) -> Tensors:
    most = weight.float().abs().amax(dim=1)
    rounded = (weight.float() / most[:, None] * 127).round().to(torch.int8)
    stem = name.removesuffix(".weight")
    return {name: rounded, f"{stem}.SCB": most, f"{stem}.weight_format": torch.tensor(0).byte()}


def main() -> None:
    """Write the checkpoint that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("kind", nargs="?", choices=["bf16", "bnb-nf4", "bnb-int8"], default="bf16")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    total = write_checkpoint(asked.shape, asked.out, asked.kind, asked.device)
    print(f"{asked.out}: {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
