"""Unstructured and 2:4 sparsity: weights become zero where they stand.

For the question of quality only. vLLM runs such a checkpoint as a dense one: nothing gets smaller or
faster, since its kernels do not skip zeros.

Source:  Frantar & Alistarh, SparseGPT, arXiv 2301.00774; Sun et al., Wanda, arXiv 2306.11695.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from serving.errors import InputError
from workbench.compress.checkpoint import load, written
from workbench.compress.oneshot import oneshot
from workbench.compress.texts import fitting_rows, seen_rows
from workbench.progress import OnProgress

Pattern = Literal["unstructured", "2:4"]
Algorithm = Literal["sparsegpt", "wanda"]
NO_SPEED = "sparse weights, dense kernels: vLLM gains no speed and no memory from this"


def sparsify(
    model: str | Path,
    out: Path,
    *,
    sparsity: float = 0.5,
    pattern: Pattern = "unstructured",
    algorithm: Algorithm = "sparsegpt",
    calibration_sequences: int = 64,
    text: Path | None = None,
    task_share: float | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write the model with a share of its layers' weights set to zero.

    Args:    sparsity: the share; 2:4 is always half.
             pattern: anywhere, or two of every four neighbours.
             text, task_share: as for `quantize`.
    Raises:  ModelError: a model that cannot be loaded, or is quantized.
             InputError: a share outside 0 to 1, or 2:4 with another than half.
    """
    if not 0 < sparsity < 1 or (pattern == "2:4" and sparsity != 0.5):
        raise InputError(
            f"sparsity(={sparsity:g}) with pattern(={pattern!r}) is not possible",
            remedy="Take a share between 0 and 1; 2:4 is 0.5.",
        )
    parent, tokenizer = load(model)
    rows = fitting_rows(
        tokenizer, calibration_sequences, seed=seed, text=text, task_share=task_share
    )
    size = sum(p.numel() * p.element_size() for p in parent.parameters())
    with written(out, needed_bytes=size) as folder:
        oneshot(
            parent,
            tokenizer,
            [_modifier(algorithm, sparsity, pattern)],
            rows,
            folder,
            f"{sparsity:.0%} sparse",
            on_progress,
        )
        tokenizer.save_pretrained(folder)
        seen_rows(tokenizer, rows).write(folder)
    return out


def zero_share(model: str | Path) -> float:
    """Share of the weights of all layers' matrices that are zero."""
    loaded, _ = load(model)
    matrices = [p for name, p in loaded.model.layers.named_parameters() if p.ndim == 2]
    zeros = sum(int((p == 0).sum()) for p in matrices)
    return zeros / sum(int(p.numel()) for p in matrices)


def _modifier(algorithm: Algorithm, sparsity: float, pattern: Pattern) -> Any:
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    kinds = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}
    return kinds[algorithm](
        sparsity=sparsity,
        mask_structure="2:4" if pattern == "2:4" else "0:0",
        targets=["Linear"],
        # It looks for "lm_head.", which a plain name would not match.
        ignore=["re:.*lm_head"],
    )
