"""How large a model is, and what shapes are refused."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


class ModelShapeError(ValueError):
    """A model of this shape cannot be built, or its kernels would not run."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Llama; the defaults are those of the shipped model.

    Widths are multiples of 128, since quantised matrix kernels work in such groups.

    Raises: ModelShapeError: a size that is not positive, or that does not fit the others.
    """

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 768
    vocab: int = 2048
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ModelShapeError(f"{field.name}(={value}) must be at least 1")
        for name in ("hidden", "mlp", "vocab"):
            value = getattr(self, name)
            if value % 128:
                near = max(128, round(value / 128) * 128)
                raise ModelShapeError(f"{name}(={value}) must be a multiple of 128: take {near}")
        if self.vocab < 384:
            raise ModelShapeError(f"vocab(={self.vocab}) must hold all bytes: take 384 or more")
        if self.hidden % self.heads or self.hidden // self.heads % 16:
            raise ModelShapeError(
                f"heads(={self.heads}) must divide hidden(={self.hidden}) into heads whose width "
                f"is a multiple of 16: take {max(1, self.hidden // 64)}"
            )
        if self.heads % self.kv_heads:
            raise ModelShapeError(
                f"kv_heads(={self.kv_heads}) must divide heads(={self.heads}): take {self.heads}"
            )


def build_model(shape: ModelShape, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Make an untrained Llama with tied embeddings and no biases, from torch's generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
