"""What one engine step of a model must read and compute."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field

from serving.plan import EngineArgs, Variant
from serving.values import Value

_ARCHITECTURES = {
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"),
}
_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_STORED_BYTES = {
    "F64": 8,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}


class ModelCost(Value):
    """What an engine step must read and compute, whatever the kernels do besides.

    Of decoder-only transformers with gated MLPs (Llama's shape). Not counted: activations, norms'
    and rotary arithmetic, sampling, writing the KV cache.
    """

    weight_bytes: int = Field(gt=0)
    """Read in every step: the layers, the last norm and the output head. Of the embedding table only
    some rows are read, unless it is the head too."""
    linear_params: int = Field(gt=0)
    """Of the layers' matrices."""
    head_params: int = Field(gt=0)
    """Of the output head, which is applied where a token is sampled."""
    embedding_bytes: int = Field(0, ge=0)
    """Of an embedding table that is not the head too: held, and not read as a whole."""
    attention_flops_per_pair: int = Field(gt=0)
    """Per query and key: 2 for the score and 2 for the sum, of each head's width, in each layer."""
    kv_bytes_per_token: int = Field(gt=0)
    """Keys and values of one token in all layers."""
    compute_dtype: str
    """Type of the factors in the layers' products, as in Ceilings.flops_per_s."""
    source: str
    """Where weight_bytes come from."""

    @property
    def flops_per_token(self) -> int:
        """Of the layers' matrices: a multiplication and an addition per parameter."""
        return 2 * self.linear_params

    @property
    def flops_per_sample(self) -> int:
        """Of the output head."""
        return 2 * self.head_params

    @property
    def stored_bytes(self) -> int:
        """All weights in the memory of the device."""
        return self.weight_bytes + self.embedding_bytes

    @classmethod
    def of(cls, variant: Variant, engine_args: EngineArgs) -> Self | None:
        """The cost of a variant as these arguments serve it; None where it cannot be told.

        From config.json and, where they lie beside it, the sizes of the tensors in the headers of
        safetensors files. A hub id is looked up in the local cache.

        None: no such file, another architecture, sliding windows, or a quantization that is not known.
        """
        folder = _folder(variant)
        if folder is None:
            return None
        config = json.loads((folder / "config.json").read_text())
        return cls.of_config(config, engine_args, folder)

    @classmethod
    def of_config(
        cls, config: Mapping[str, Any], engine_args: EngineArgs, folder: Path | None = None
    ) -> Self | None:
        """The cost by a config.json; None where it cannot be told, as in `of`.

        Args:    folder: where safetensors files may lie; None takes all from the configuration.
        """
        shape = _Shape.of(config)
        if shape is None:
            return None
        declared = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        # vLLM's `auto` serves a float32 checkpoint in 16 bits.
        automatic = "bfloat16" if declared == "float32" else declared
        dtype = automatic if engine_args.dtype == "auto" else engine_args.dtype
        scheme = _scheme(config.get("quantization_config"), dtype)
        if scheme is None:
            return None
        bits, compute_dtype = scheme
        width = _BITS[dtype] // 8
        stored = _stored_bytes(folder, width, tied=shape.tied) if folder else 0
        computed = shape.linear_params * bits / 8 + (shape.head_params + shape.norm_params) * width
        return cls(
            weight_bytes=stored or round(computed),
            linear_params=shape.linear_params,
            head_params=shape.head_params,
            embedding_bytes=0 if shape.tied else shape.head_params * width,
            attention_flops_per_pair=4 * shape.layers * shape.heads * shape.head_dim,
            kv_bytes_per_token=2
            * shape.layers
            * shape.kv_heads
            * shape.head_dim
            * _kv_width(engine_args.kv_cache_dtype, width),
            compute_dtype=compute_dtype,
            source="safetensors headers" if stored else "config.json",
        )


class _Shape(NamedTuple):
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    linear_params: int
    head_params: int
    norm_params: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Shape | None:
        if not _ARCHITECTURES.intersection(config.get("architectures") or ()):
            return None
        if config.get("sliding_window") and config.get("use_sliding_window", True):
            return None  # what a sequence reads stops growing with it
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or hidden // heads)
        attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
        mlp = 3 * hidden * int(config["intermediate_size"])
        return cls(
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            linear_params=layers * (attention + mlp),
            head_params=int(config["vocab_size"]) * hidden,
            norm_params=(2 * layers + 1) * hidden,
            tied=bool(config.get("tie_word_embeddings", False)),
        )


def _scheme(quantization: Mapping[str, Any] | None, dtype: str) -> tuple[float, str] | None:
    """Bits per weight of a linear layer with its scales, and the type of the factors; None: unknown."""
    if dtype not in _BITS:
        return None
    if not quantization:
        return _BITS[dtype], dtype
    method = quantization.get("quant_method")
    if method == "compressed-tensors":
        return _compressed(list((quantization.get("config_groups") or {}).values()), dtype)
    if method == "fp8":
        return 8, "float8_e4m3"
    if method == "bitsandbytes":
        return _bitsandbytes(quantization, dtype)
    if method in ("gptq", "awq") and quantization.get("bits"):
        bits, group = float(quantization["bits"]), int(quantization.get("group_size") or -1)
        return bits + (_BITS[dtype] / group if group > 0 else 0), dtype
    return None


def _bitsandbytes(quantization: Mapping[str, Any], dtype: str) -> tuple[float, str] | None:
    """LLM.int8() has a scale per row; 4-bit weights one per block of 64, itself in 8 bits or in 32."""
    if quantization.get("load_in_8bit"):
        return 8, "int8"
    if not quantization.get("load_in_4bit"):
        return None
    return 4 + (8 if quantization.get("bnb_4bit_use_double_quant") else 32) / 64, dtype


def _compressed(groups: list[Mapping[str, Any]], dtype: str) -> tuple[float, str] | None:
    if len(groups) != 1 or not groups[0].get("weights"):
        return None
    weights, inputs = groups[0]["weights"], groups[0].get("input_activations")
    bits, group = float(weights["num_bits"]), int(weights.get("group_size") or -1)
    if group > 0:
        bits += _BITS[dtype] / group
    if not inputs:
        return bits, dtype  # 16-bit factors: weights are made wide again on their way
    if int(inputs["num_bits"]) != 8:
        return None
    return bits, "float8_e4m3" if inputs.get("type") == "float" else "int8"


def _folder(variant: Variant) -> Path | None:
    """Where config.json lies: the model's folder, or that of a hub id in the local cache."""
    folder = Path(variant.model)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or variant.model.startswith(("/", ".")):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(variant.model, "config.json", revision=variant.revision)
    except ValueError:  # not a hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _stored_bytes(folder: Path, width: int, *, tied: bool) -> int:
    """What a step reads of the tensors in safetensors files; 0 where there are none.

    Floats count in the width that they are served in, packed and 8-bit tensors as they are stored.
    Source:  the format's header: 8 bytes of length, then JSON (huggingface/safetensors, README)
    """
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors |= json.loads(file.read(length))
    tensors.pop("__metadata__", None)
    embeddings = {name for name in tensors if "embed_tokens" in name}
    heads = {name for name in tensors if name.startswith("lm_head")}
    # A tied head may be stored twice, under both names.
    skipped = heads if tied and embeddings else embeddings
    total = 0
    for name, tensor in tensors.items():
        if name in skipped:
            continue
        elements = 1
        for side in tensor["shape"]:
            elements *= side
        total += elements * _STORED_BYTES.get(tensor["dtype"], width)
    return total


def _kv_width(kv_cache_dtype: str | None, width: int) -> int:
    """Bytes of one key or value; `auto` and None are the model's own."""
    if kv_cache_dtype is None or kv_cache_dtype == "auto":
        return width
    return 1 if kv_cache_dtype.startswith(("fp8", "int8")) else _BITS.get(kv_cache_dtype, 16) // 8
