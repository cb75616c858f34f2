"""Compression on tiny random models: what is written, what is refused, what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from serving.errors import InputError, ModelError
from workbench.compress import distil, measure_quality, prune
from workbench.compress.checkpoint import load, written
from workbench.compress.prune import importance
from workbench.compress.quality import _answers, wilson
from workbench.model import shipped_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with the shipped model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(shipped_checkpoint())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(folder: Path) -> torch.Tensor:
    model, _ = load(folder)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(300, 340)[None]).logits.float()
    return found


def test_pruning_nothing_is_the_identity(tiny: Path, tmp_path: Path) -> None:
    same = prune(tiny, tmp_path / "same", layers=0, mlp_width=256)
    assert torch.equal(logits(tiny), logits(same))


def test_pruning_takes_out_what_it_says(tiny: Path, tmp_path: Path) -> None:
    smaller = prune(tiny, tmp_path / "smaller", layers=1, mlp_width=128)
    model, _ = load(smaller)
    assert model.config.num_hidden_layers == len(model.model.layers) == 1
    assert model.model.layers[0].mlp.down_proj.weight.shape == (128, 128)
    parent, _ = load(tiny)
    assert model.num_parameters() < parent.num_parameters()


def test_a_layer_without_influence_goes_first(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = load(tiny)
    with torch.no_grad():
        # A layer that adds nothing to the residual stream.
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    influence, _ = importance(model, tokenizer)
    assert influence[1] == pytest.approx(0, abs=1e-3)
    assert influence[0] > 0.01
    model.save_pretrained(tmp_path / "idle")
    tokenizer.save_pretrained(tmp_path / "idle")
    cut = prune(tmp_path / "idle", tmp_path / "cut", layers=1)
    torch.testing.assert_close(logits(cut), logits(tmp_path / "idle"))


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ({"layers": 2}, r"layers\(=2\)"),
        ({"mlp_width": 200}, r"mlp_width\(=200\) must be a multiple of 128"),
        ({"mlp_width": 512}, r"mlp_width\(=512\)"),
    ],
)
def test_an_impossible_cut_is_refused(
    tiny: Path, tmp_path: Path, cut: dict[str, int], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        prune(tiny, tmp_path / "out", **cut)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save_pretrained"):
        load(tmp_path)


def test_the_parent_against_itself_loses_nothing(tiny: Path) -> None:
    quality = measure_quality(tiny, tiny, tokens=1024, tasks=20)
    assert quality.agreement.value == 1
    assert quality.kl_nats.value == 0
    assert quality.relative_task_accuracy == 1
    assert quality.perplexity.low <= quality.perplexity.value <= quality.perplexity.high
    # Random weights know nothing: about as many choices as there are tokens.
    assert quality.perplexity.value > 1000


def test_distillation_comes_closer_to_the_teacher(tmp_path: Path) -> None:
    teacher = shipped_checkpoint()
    start = prune(teacher, tmp_path / "start", layers=1, mlp_width=512)
    student = distil(teacher, start, tmp_path / "student", tokens=6 * 2048, seed=1)
    before = measure_quality(start, teacher, tokens=2048, tasks=1).kl_nats.value
    after = measure_quality(student, teacher, tokens=2048, tasks=1).kl_nats.value
    assert after < 0.9 * before


def test_a_student_that_was_cut_off_is_the_same_student(tiny: Path, tmp_path: Path) -> None:
    def teach(out: Path, stop_at: int | None = None) -> None:
        def stop(doing: str, share: float) -> None:
            if stop_at is not None and f"step {stop_at}/" in doing:
                raise KeyboardInterrupt

        distil(
            tiny, tiny, out, tokens=6 * 512, batch_size=2, save_every=2, seed=3, on_progress=stop
        )

    teach(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path / "cut", stop_at=5)
    assert not (tmp_path / "cut").exists()
    teach(tmp_path / "cut")
    assert torch.equal(logits(tmp_path / "whole"), logits(tmp_path / "cut"))


def test_an_interval_contains_its_proportion_and_narrows() -> None:
    for right, n in ((0, 10), (7, 10), (10, 10)):
        found = wilson(right, n)
        assert found.low <= found.value <= found.high
    few, many = wilson(9, 10), wilson(900, 1000)
    assert many.high - many.low < (few.high - few.low) / 5


def test_answers_by_one_pass_are_those_of_greedy_decoding() -> None:
    from workbench.model.tasks import generate, is_correct

    model, tokenizer = load(shipped_checkpoint())
    tasks = generate(24, split="heldout", seed=5)
    greedy = []
    for task in tasks:
        prompt = tokenizer.apply_chat_template(
            task.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
        text = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        greedy.append(is_correct(task, text))
    quick = _answers(model, tokenizer, 24, seed=5)
    assert np.mean(quick == np.array(greedy)) >= 23 / 24  # a tie of logits may fall either way


def test_nothing_half_written_takes_the_name(tmp_path: Path) -> None:
    def fail() -> None:
        with written(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="free"), written(tmp_path / "out", needed_bytes=10**18):
        pass
