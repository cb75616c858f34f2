"""INT8 W8A8: 8-bit weights per channel, 8-bit activations per token, by llmcompressor's GPTQ.

The checkpoint is in the compressed-tensors format, which vLLM runs on INT8 kernels, on CPUs and GPUs.

Source:  Frantar et al., GPTQ, arXiv 2210.17323.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from workbench.compress.checkpoint import load, written

SEQ_LEN = 256


def quantize_int8(
    model: str | Path, out: Path, *, calibration_sequences: int = 16, seed: int = 0
) -> Path:
    """Write an INT8 W8A8 checkpoint.

    Args:    calibration_sequences: of 256 tokens each, text and tasks, that GPTQ sees.
    Raises:  ModelError: a model that cannot be loaded.
    """
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    from workbench.model.batches import token_batches

    parent, tokenizer = load(model)
    batches = token_batches(tokenizer, seed=seed, batch_size=8, seq_len=SEQ_LEN)
    wanted = -(-calibration_sequences // 8)
    rows = [row for batch in islice(batches, wanted) for row in batch.input_ids.tolist()]
    data = Dataset.from_list([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    size = sum(p.numel() * p.element_size() for p in parent.parameters())
    with written(out, needed_bytes=size) as folder:
        oneshot(
            model=parent,
            tokenizer=tokenizer,
            dataset=data,
            recipe=GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
            max_seq_length=SEQ_LEN,
            num_calibration_samples=len(rows),
            # One by one they take six times as long.
            batch_size=len(rows),
            output_dir=str(folder),
        )
        tokenizer.save_pretrained(folder)
    return out
