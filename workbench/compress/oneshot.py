"""llmcompressor's one call, with progress: quantization and sparsity go through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from workbench.progress import OnProgress

_BATCH = 16


def oneshot(
    model: Any,
    tokenizer: Any,
    modifiers: list[Any],
    rows: list[list[int]],
    folder: Path,
    says: str,
    on_progress: OnProgress | None = None,
) -> None:
    """Apply modifiers to a model on calibration rows, and write it.

    Args:    rows: token ids, all of one length.
             says: what is done, in words.
    """
    from datasets import Dataset
    from llmcompressor import oneshot as apply

    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    # One modifier looks at text, layer by layer and what stands behind them; others only round.
    steps = model.config.num_hidden_layers + len(modifiers)
    with _without_pinning(), _telling(says, steps, on_progress):
        apply(
            model=model,
            tokenizer=tokenizer,
            dataset=data,
            recipe=modifiers,
            max_seq_length=len(rows[0]),
            num_calibration_samples=len(rows),
            # One by one they take six times as long.
            batch_size=min(_BATCH, len(rows)),
            output_dir=str(folder),
        )


@contextmanager
def _telling(says: str, steps: int, on_progress: OnProgress | None) -> Iterator[None]:
    """Tell how many layers are through; llmcompressor has a callback for it, but no listener."""
    from llmcompressor.core import LifecycleCallbacks

    told = vars(LifecycleCallbacks)["sequential_epoch_end"]
    through = count(1)

    def tell(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = told.__func__(cls, *args, **kwargs)
        if on_progress is not None:
            done = min(next(through), steps)
            on_progress(f"{says}: part {done} of {steps}", done / steps)
        return found

    LifecycleCallbacks.sequential_epoch_end = classmethod(tell)
    try:
        yield
    finally:
        LifecycleCallbacks.sequential_epoch_end = told


@contextmanager
def _without_pinning() -> Iterator[None]:
    """AWQ in llmcompressor 0.14 pins its cache, which takes an accelerator."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *args, **kwargs: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original
