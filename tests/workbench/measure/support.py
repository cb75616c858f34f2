"""What the tests of the measure stage share."""

from __future__ import annotations

import json
from pathlib import Path

from serving.plan import EngineArgs, Variant

ENGINE = EngineArgs(
    max_model_len=256,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    enforce_eager=True,
    kv_cache_memory_bytes=64 * 2**20,
)


def toy_variant(folder: Path, name: str = "toy") -> Variant:
    """A variant that is only a tokenizer: enough for everything but real vLLM."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {f"t{i}": i for i in range(100)}
    special = [{"id": 0, "content": "t0", "special": True}]
    declared = {"model": {"vocab": vocabulary}, "added_tokens": special}
    (folder / "tokenizer.json").write_text(json.dumps(declared))
    return Variant(name=name, model=str(folder))
