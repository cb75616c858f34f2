"""Checkpoints in and out: loading with a clear refusal, writing whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import InputError, ModelError


def load(model: str | Path, *, dtype: Any = "auto") -> tuple[Any, Any]:
    """A causal language model in evaluation mode, and its tokenizer.

    Raises:  ModelError: no such model, or not one that generates text.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model))
        loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot load model(={str(model)!r}): {reason}",
            remedy="Give a folder made by save_pretrained, or a hub id of a causal language model.",
        ) from error
    return loaded.eval(), tokenizer


def size_bytes(folder: Path) -> int:
    """Bytes of the weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


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
