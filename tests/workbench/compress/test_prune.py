"""Structured pruning: what goes is what does least, and what is left is an ordinary model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serving.errors import InputError, ModelError
from tests.workbench.compress.conftest import logits, tiny_model
from workbench.compress.checkpoint import load, size_bytes
from workbench.compress.importance import importance, norms
from workbench.compress.prune import layers_kept, prune
from workbench.compress.texts import fitting_rows


def test_pruning_nothing_is_the_identity(tiny: Path, tmp_path: Path) -> None:
    same = prune(
        tiny,
        tmp_path / "same",
        mlp_width=256,
        heads=4,
        kv_heads=2,
        hidden=256,
        calibration_sequences=8,
    )
    assert torch.equal(logits(tiny), logits(same))


@pytest.mark.parametrize(
    ("cut", "weight", "shape"),
    [
        ({"mlp_width": 128}, "mlp.down_proj", (256, 128)),
        ({"heads": 2}, "self_attn.o_proj", (256, 128)),
        ({"heads": 2}, "self_attn.k_proj", (128, 256)),
        ({"kv_heads": 1}, "self_attn.k_proj", (64, 256)),
        ({"kv_heads": 1}, "self_attn.q_proj", (128, 256)),
        ({"hidden": 128}, "self_attn.q_proj", (256, 128)),
        ({"hidden": 128}, "mlp.down_proj", (128, 256)),
        ({"layers": 1, "kv_heads": 1, "heads": 1, "hidden": 128}, "self_attn.o_proj", (128, 64)),
    ],
)
def test_pruning_takes_out_what_it_says(
    tiny: Path, tmp_path: Path, cut: dict[str, int], weight: str, shape: tuple[int, int]
) -> None:
    smaller = prune(tiny, tmp_path / "smaller", calibration_sequences=8, **cut)
    model, _ = load(smaller)
    assert model.config.num_hidden_layers == len(model.model.layers) == 2 - cut.get("layers", 0)
    assert tuple(model.model.layers[0].get_submodule(weight).weight.shape) == shape
    assert model.config.head_dim == 64
    assert size_bytes(smaller) < size_bytes(tiny)
    assert torch.isfinite(logits(smaller)).all()


def test_untied_heads_and_biases_are_cut_as_well(tmp_path: Path) -> None:
    parent = tiny_model(tmp_path / "parent", tie_word_embeddings=False, attention_bias=True)
    model, _ = load(
        prune(parent, tmp_path / "out", kv_heads=1, hidden=128, calibration_sequences=8)
    )
    assert tuple(model.lm_head.weight.shape)[1] == 128
    assert tuple(model.model.layers[0].self_attn.k_proj.bias.shape) == (64,)


def test_a_layer_without_influence_goes_first(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny)
    with torch.no_grad():
        # A layer that adds nothing to the residual stream.
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    found = importance(model, fitting_rows(tokenizer, 8, seed=0))
    assert found.block_influence[1] == pytest.approx(0, abs=1e-3)
    assert found.block_influence[0] > 0.01
    model.save_pretrained(tmp_path / "idle")
    tokenizer.save_pretrained(tmp_path / "idle")
    cut = prune(tmp_path / "idle", tmp_path / "cut", layers=1, calibration_sequences=8)
    torch.testing.assert_close(logits(cut), logits(tmp_path / "idle"))


def test_idle_parts_cost_nothing(tiny: Path, tmp_path: Path) -> None:
    """Neurons, heads and channels that are dead go first, and the model says the same without them."""
    model, tokenizer = load(tiny, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:128].zero_()
            layer.self_attn.v_proj.weight[:64].zero_()  # group 0, so heads 0 and 1
        model.model.embed_tokens.weight[:, 128:].zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[128:].zero_()
            layer.mlp.down_proj.weight[128:].zero_()
    model.save_pretrained(tmp_path / "idle")
    tokenizer.save_pretrained(tmp_path / "idle")
    cut = prune(
        tmp_path / "idle",
        tmp_path / "cut",
        mlp_width=128,
        kv_heads=1,
        hidden=128,
        calibration_sequences=8,
    )
    # The norms divide by another mean square; their weights make up for it.
    torch.testing.assert_close(logits(cut), logits(tmp_path / "idle"), rtol=2e-3, atol=2e-3)


def test_runs_of_layers_are_judged_together(tmp_path: Path) -> None:
    parent = tiny_model(tmp_path / "parent", num_hidden_layers=4)
    model, tokenizer = load(parent)
    with torch.no_grad():
        for i in (0, 3):
            model.model.layers[i].self_attn.o_proj.weight.mul_(0.01)
            model.model.layers[i].mlp.down_proj.weight.mul_(0.01)
    found = importance(model, fitting_rows(tokenizer, 8, seed=0))
    assert found.least(2, contiguous=False) == [0, 3]
    together = found.least(2, contiguous=True)
    assert together in ([0, 1], [1, 2], [2, 3])
    assert found.distances[0, 4] > found.distances[0, 1] > 0


def test_layers_are_counted_in_the_first_parent(tmp_path: Path) -> None:
    parent = tiny_model(tmp_path / "parent", num_hidden_layers=4)
    once = prune(parent, tmp_path / "once", layers=1, calibration_sequences=8)
    twice = prune(once, tmp_path / "twice", layers=1, calibration_sequences=8)
    first, second = layers_kept(once, of=4), layers_kept(twice, of=4)
    assert first is not None
    assert second is not None
    assert set(second) < set(first) < {0, 1, 2, 3}
    assert layers_kept(twice, of=3) is None
    assert layers_kept(parent, of=4) is None
    assert len(json.loads((once / "pruned.json").read_text())["block_influence"]) == 4


def test_norms_of_heads_are_left_alone(tiny: Path) -> None:
    model, _ = load(tiny)
    assert [name for name, _ in norms(model)][-1] == "model.norm"
    assert len(norms(model)) == 5


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ({"layers": 2}, r"layers\(=2\)"),
        ({"mlp_width": 200}, r"mlp_width\(=200\) must be a multiple of 128"),
        ({"mlp_width": 512}, r"mlp_width\(=512\)"),
        ({"hidden": 64}, r"hidden\(=64\)"),
        ({"kv_heads": 3}, r"kv_heads\(=3\) must be between 1 and 2"),
        ({"heads": 3}, r"heads\(=3\) must be a multiple of 2"),
        ({"heads": 4, "kv_heads": 1}, r"heads\(=4\) must be a multiple of 1 .* up to 2"),
    ],
)
def test_an_impossible_cut_is_refused(
    tiny: Path, tmp_path: Path, cut: dict[str, int], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prune(tiny, tmp_path / "out", **cut)
    assert not (tmp_path / "out").exists()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from workbench.model import shipped_checkpoint

    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(shipped_checkpoint()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="GPT2LMHeadModel"):
        prune(tmp_path, tmp_path / "out", layers=0)
