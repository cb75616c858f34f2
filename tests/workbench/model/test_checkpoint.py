"""What the card of the shipped model claims, measured again."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from workbench.model import shipped_checkpoint
from workbench.model.batches import heldout_tokens
from workbench.model.card import accuracy, negative_log_likelihood, wilson_interval
from workbench.model.tasks import generate


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shipped_checkpoint() / "card.json").read_text())
    return found


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shipped_checkpoint())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(shipped_checkpoint(), dtype=torch.float32)


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in shipped_checkpoint().iterdir()) <= 8_000_000


def test_it_is_what_vllm_expects(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tokenizer) == 2048
    assert tokenizer.eos_token == "<|end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template


def test_it_answers(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    assert accuracy(model, tokenizer, generate(200, split="heldout", seed=2))["accuracy"] > 0.9


def test_it_beats_the_ngram(
    model: Any, tokenizer: PreTrainedTokenizerBase, card: dict[str, Any]
) -> None:
    rows = heldout_tokens(tokenizer, max_tokens=40_000)
    perplexity = math.exp(float(negative_log_likelihood(model, rows).mean()))
    assert perplexity < 0.9 * card["heldout"]["ngram"]["perplexity"]


def test_the_card_is_complete(card: dict[str, Any]) -> None:
    assert card["recipe"]["seed"] == 0
    assert card["tasks"]["n"] == sum(kind["n"] for kind in card["tasks"]["by_kind"].values())
    low, high = card["tasks"]["wilson_95"]
    assert low < card["tasks"]["accuracy"] < high


def test_wilson_interval() -> None:
    """Worked example: 8 of 10 gives 0.490 to 0.943."""
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
