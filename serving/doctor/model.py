"""What a model needs of memory, from its config.json and the headers of its weights."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from serving.doctor.probe import cache_folder
from serving.errors import BundleError
from serving.plan import EngineArgs, Variant
from serving.values import Value

_WIDTH_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# What is stored in these is served as it is; other floats become the type that is served.
_STORED_BYTES = {
    **{"F64": 8, "I64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}
_NO_HEADER = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    struct.error,
    MemoryError,
    OverflowError,
)
_NO_KV = ("linear_attention", "mamba", "conv")


class Shape(Value):
    """The sizes of a decoder that memory depends on."""

    kv_layers: int = Field(gt=0)
    """Layers that keep keys and values of every token."""
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    latent_dim: int = Field(0, ge=0)
    """Values per token and layer of multi-head latent attention, in place of keys and values."""
    hidden: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    dtype: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """From a config.json; None where it says too little.

        Sliding windows are taken for full attention: an upper bound.
        """
        text = config.get("text_config")
        inner = text if isinstance(text, Mapping) else config
        try:
            heads = int(inner["num_attention_heads"])
            layers, hidden = int(inner["num_hidden_layers"]), int(inner["hidden_size"])
            kinds = inner.get("layer_types") or ()
            rope = int(inner.get("qk_rope_head_dim") or 0)
            latent = int(inner.get("kv_lora_rank") or 0)
            return cls(
                kv_layers=layers - sum(str(kind) in _NO_KV for kind in kinds),
                kv_heads=int(inner.get("num_key_value_heads") or heads),
                head_dim=int(inner.get("head_dim") or hidden // heads),
                latent_dim=latent + rope if latent else 0,
                hidden=hidden,
                intermediate=int(inner.get("intermediate_size") or 4 * hidden),
                vocabulary=int(inner["vocab_size"]),
                dtype=str(
                    inner.get("dtype")
                    or inner.get("torch_dtype")
                    or config.get("dtype")
                    or config.get("torch_dtype")
                    or "bfloat16"
                ),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def width_bytes(self, engine: EngineArgs) -> int:
        """Of one number of the type that is served; vLLM's `auto` serves float32 in 16 bits."""
        if engine.dtype != "auto":
            return _WIDTH_BYTES[engine.dtype]
        return 2

    def kv_bytes_per_token(self, engine: EngineArgs) -> int:
        """Keys and values of one token on one GPU; with more GPUs than KV heads each keeps one."""
        width = _kv_width(engine.kv_cache_dtype, self.width_bytes(engine))
        if self.latent_dim:  # every GPU keeps all of it
            return self.kv_layers * self.latent_dim * width
        heads = max(1, self.kv_heads // engine.tensor_parallel_size)
        return 2 * self.kv_layers * heads * self.head_dim * width


class Weights(Value):
    """How large the weights are, and how that is known."""

    served_bytes: int = Field(gt=0)
    """In the memory of the GPUs, all together."""
    file_bytes: int = Field(gt=0)
    plain: bool
    """Floats of 16 bits or more throughout: quantization would still help."""
    source: str


class Model(Value):
    """A model as far as it can be looked at from here."""

    folder: Path | None
    shape: Shape | None
    weights: Weights | None

    @classmethod
    def of(cls, variant: Variant, engine: EngineArgs, bundle: Path) -> Self:
        """Read what lies in the bundle, in a folder, or in Hugging Face's cache.

        Raises:  BundleError: a file of weights that is none.
        """
        folder = _folder(variant, bundle)
        shape = None if folder is None else Shape.of(_config(folder))
        width = 2 if shape is None else shape.width_bytes(engine)
        stored = None if folder is None else _stored(folder, width)
        if stored is None and variant.size_bytes:
            size = variant.size_bytes
            stored = Weights(
                served_bytes=size,
                file_bytes=size,
                plain=variant.method == "none",
                source="the plan's size_bytes",
            )
        return cls(folder=folder, shape=shape, weights=stored)

    @property
    def largest_file(self) -> Path | None:
        """Of the weights; what a trial read is made of."""
        files = [] if self.folder is None else list(self.folder.glob("*.safetensors"))
        return max(files, key=lambda path: path.stat().st_size, default=None)


def _folder(variant: Variant, bundle: Path) -> Path | None:
    for local in (bundle / variant.model, Path(variant.model)):
        if (local / "config.json").is_file():
            return local
    if variant.revision is None:
        return None
    # The layout of huggingface_hub's cache.
    hub = Path(os.environ.get("HF_HUB_CACHE") or cache_folder() / "hub")
    name = "models--" + variant.model.replace("/", "--")
    snapshot = hub / name / "snapshots" / variant.revision
    return snapshot if (snapshot / "config.json").is_file() else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"cannot read {folder / 'config.json'} ({error})", remedy="Copy the model again."
        ) from error
    return found if isinstance(found, dict) else {}


def _stored(folder: Path, width_bytes: int) -> Weights | None:
    """By the headers of the safetensors files; None where there are none.

    Source:  the format's header: 8 bytes of length, then JSON (huggingface/safetensors, README)
    """
    served = size = 0
    plain = True
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                tensors = json.loads(file.read(length))
            size += path.stat().st_size
            for name, tensor in tensors.items():
                if name != "__metadata__":
                    kept = _STORED_BYTES.get(tensor["dtype"])
                    plain = plain and kept is None
                    served += prod(tensor["shape"]) * (kept or width_bytes)
        except (OSError, *_NO_HEADER) as error:
            raise BundleError(
                f"{path} is no safetensors file ({error})", remedy="Copy the model again."
            ) from error
    if not served:
        return None
    return Weights(served_bytes=served, file_bytes=size, plain=plain, source="safetensors headers")


def _kv_width(kv_cache_dtype: str | None, width_bytes: int) -> int:
    if kv_cache_dtype is None or kv_cache_dtype == "auto":
        return width_bytes
    if kv_cache_dtype.startswith(("fp8", "int8")):
        return 1
    return _WIDTH_BYTES.get(kv_cache_dtype, 2)
