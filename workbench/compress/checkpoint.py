"""Checkpoints in and out: loading with a clear refusal, writing whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import InputError, ModelError

_REMEDY = "Give a folder made by save_pretrained, or a hub id of a causal language model."


def load(model: str | Path, *, dtype: Any = "auto") -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Raises:  ModelError: no such model, one that generates no text, weights that are damaged or missing,
                 or weights that are quantized already.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        check_not_quantized(model)
        tokenizer = AutoTokenizer.from_pretrained(str(model))
        loaded, told = AutoModelForCausalLM.from_pretrained(
            str(model), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"cannot load model(={str(model)!r}): {reason}", remedy=_REMEDY) from error
    wrong = sorted({*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])})
    if wrong:
        raise ModelError(
            f"cannot load model(={str(model)!r}): {len(wrong)} weights are missing or of another"
            f" shape, {wrong[0]} first",
            remedy="Write or download it again.",
        )
    return loaded.eval(), tokenizer


def check_not_quantized(model: str | Path) -> None:
    """Refuse a checkpoint whose weights are no longer what training needs.

    Raises:  ModelError: it is quantized, or its config.json is damaged.
    """
    path = Path(model) / "config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(
            f"cannot load model(={str(model)!r}): config.json is damaged ({error})", remedy=_REMEDY
        ) from error
    if config.get("quantization_config"):
        raise ModelError(
            f"model(={str(model)!r}) is quantized already",
            remedy="Prune and distil first and quantize last, each from 16-bit weights.",
        )


def size_bytes(folder: str | Path) -> int:
    """Bytes of the weights; 0 where they do not lie in a local folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def save(model: Any, tokenizer: Any, out: Path) -> Path:
    """Write a model and its tokenizer, whole or not at all.

    Raises:  InputError: the disk is too full.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with written(out, needed_bytes=size) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


@contextmanager
def written(folder: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """A folder to write to that takes its name only once it is whole.

    Raises:  InputError: the disk has less than three times `needed_bytes` free.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 3 * needed_bytes:
        raise InputError(
            f"{folder.parent} has {free / 2**30:.1f} GiB free",
            remedy=f"Free {3 * needed_bytes / 2**30:.1f} GiB or choose another disk.",
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
