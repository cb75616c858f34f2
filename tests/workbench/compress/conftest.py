"""Models small enough to compress in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from workbench.compress.checkpoint import load
from workbench.model import shipped_checkpoint


def tiny_model(folder: Path, **changes: object) -> Path:
    """A random Llama of two layers with the shipped model's tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(shipped_checkpoint())
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**shape | changes)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def logits(folder: Path) -> torch.Tensor:
    model, _ = load(folder)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(300, 340)[None]).logits.float()
    return found
