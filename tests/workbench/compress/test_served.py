"""Every method through real vLLM: checkpoints that it serves, and what each keeps of the parent."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.errors import EngineError
from serving.plan import EngineArgs, Quality, Variant
from workbench.apart import Child, Link
from workbench.compress import Ask, compress, judge
from workbench.compress.checkpoint import load
from workbench.compress.machine import missing
from workbench.compress.quantize import SCHEMES
from workbench.compress.recipe import Recipe, recipes_of
from workbench.model import shipped_checkpoint
from workbench.model.tasks import generate, is_correct
from workbench.settings import engine_for_this_machine

pytestmark = pytest.mark.vllm

# How far what vLLM says may be from the parent, nats per token; roughly twice what was measured.
FAR = {
    "fp32": 0.001,
    "fp16": 0.001,
    "int8-gptq": 0.01,
    "int8-smoothquant": 0.01,
    "int4-gptq": 0.05,
    "int4-awq": 0.08,
    "fp8-kv": 0.01,
}
SERVED = [scheme for scheme in FAR if missing(SCHEMES[scheme].needs) is None]
CALIBRATED = ":calibration_sequences=16"
ASK = Ask(tokens=8192, questions=100)


def recipes() -> list[Recipe]:
    schemes = {s: s + (CALIBRATED if SCHEMES[s].calibrated else "") for s in SERVED}
    return recipes_of(
        {
            **schemes,
            "same": "prune:layers=0,calibration_sequences=8",
            "pruned": "prune:layers=1,mlp_width=512",
            "taught": ["pruned", "distil:tokens=60000,snapshots=1"],
            "taught-int8": ["taught", f"int8-gptq{CALIBRATED}"],
            "sparse24": "sparsify:pattern=2:4,calibration_sequences=8",
        },
        "here",
    )


@pytest.fixture(scope="module")
def engine_args() -> EngineArgs:
    return engine_for_this_machine()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def made(folder: Path, engine_args: EngineArgs) -> dict[str, Variant]:
    found = compress(
        shipped_checkpoint(), folder, engine_args=engine_args, recipes=recipes(), ask=ASK
    )
    return {variant.name: variant for variant in found}


def quality(variant: Variant) -> Quality:
    assert variant.quality is not None
    return variant.quality


def test_the_parent_keeps_everything(made: dict[str, Variant]) -> None:
    parent = quality(made["bf16"])
    assert (parent.agreement.value, parent.kl_nats.value, parent.recovery.value) == (1, 0, 1)
    assert parent.task_accuracy.value > 0.85
    assert 15 < parent.perplexity.value < 21
    assert parent.judged_on.startswith("8,192 tokens of the shipped held-out text, 100 questions")


@pytest.mark.parametrize("scheme", SERVED)
def test_quantized_logits_stay_close_to_the_parents(made: dict[str, Variant], scheme: str) -> None:
    found = quality(made[scheme])
    assert found.kl_nats.value < FAR[scheme]
    assert found.perplexity_ratio.value == pytest.approx(1, abs=0.05)
    if not scheme.startswith("fp"):
        assert found.kl_nats.value > 1e-5, "is it quantized at all?"
        assert made[scheme].size_bytes < 0.7 * made["bf16"].size_bytes


def test_pruning_nothing_changes_nothing(made: dict[str, Variant]) -> None:
    same = quality(made["same"])
    assert (same.agreement.value, same.kl_nats.value) == (1, 0)
    assert made["same"].size_bytes == pytest.approx(made["bf16"].size_bytes, rel=0.01)


def test_distillation_beats_the_pruned_model_it_began_with(made: dict[str, Variant]) -> None:
    pruned, young, taught = (
        quality(made[name]).perplexity_ratio for name in ("pruned", "taught.at-30720", "taught")
    )
    assert taught.high < pruned.low
    assert taught.value < young.value < pruned.value
    assert made["taught"].size_bytes == pytest.approx(made["pruned"].size_bytes, rel=0.01)


def test_a_chain_keeps_what_its_steps_keep(made: dict[str, Variant]) -> None:
    both, taught = made["taught-int8"], made["taught"]
    assert both.parent == "taught"
    assert both.size_bytes < 0.7 * taught.size_bytes
    assert quality(both).kl_nats.value == pytest.approx(quality(taught).kl_nats.value, rel=0.2)


def test_sparsity_says_that_it_gains_no_speed(made: dict[str, Variant]) -> None:
    assert quality(made["sparse24"]).kl_nats.value > 0.05
    assert "no speed" in made["sparse24"].notes[0]


def test_a_second_call_does_nothing_again(
    made: dict[str, Variant], folder: Path, engine_args: EngineArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("judged again")

    monkeypatch.setattr(import_module("workbench.compress.variants"), "judge", never)
    again = compress(
        shipped_checkpoint(), folder, engine_args=engine_args, recipes=recipes(), ask=ASK
    )
    assert {variant.name: variant for variant in again} == made
    with pytest.raises(AssertionError, match="judged again"):
        compress(
            shipped_checkpoint(),
            folder,
            engine_args=engine_args,
            recipes=recipes(),
            ask=Ask(tokens=4096, questions=100),
        )


# -- what vLLM says is what the model says ----------------------------------------------------------


def _scored(link: Link, variant: Variant, args: EngineArgs, rows: list[list[int]]) -> None:
    from workbench.measure.vllm_scores import ScoringEngine

    with ScoringEngine(variant, args.serving(variant), top=8) as engine:
        scores = dict(engine.score(rows))
        link.send([scores[i].logp for i in range(len(rows))])
        link.send([scores[i].top_ids for i in range(len(rows))])
        link.send(engine.answer([row[:20] for row in rows], 12))


def test_scores_are_those_of_the_model_itself(
    made: dict[str, Variant], engine_args: EngineArgs
) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 2000, 60 + 7 * i).tolist() for i in range(6)]
    with Child(_scored, made["fp32"], engine_args, rows) as child:
        logp, top_ids, answers = child
    model, _ = load(made["fp32"].model)
    for row, found, likeliest, answer in zip(rows, logp, top_ids, answers, strict=True):
        with torch.no_grad():
            wanted = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
            greedy = model.generate(
                torch.tensor([row[:20]]), max_new_tokens=12, do_sample=False, use_cache=True
            )[0, 20:]
        own = wanted[torch.arange(len(row) - 1), torch.tensor(row[1:])].numpy()
        np.testing.assert_allclose(found, own, atol=2e-3)
        assert (likeliest[:, 0] == wanted.argmax(-1).numpy()).mean() > 0.98
        assert [t for t in answer if t != model.config.eos_token_id] == [
            t for t in greedy.tolist() if t != model.config.eos_token_id
        ]


def test_answers_are_judged_as_greedy_decoding_would_be(made: dict[str, Variant]) -> None:
    model, tokenizer = load(made["bf16"].model)
    model.float()
    right = []
    for task in generate(100, split="heldout", seed=ASK.seed)[:20]:
        prompt = tokenizer.apply_chat_template(
            task.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**prompt, max_new_tokens=24, do_sample=False)
        text = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        right.append(is_correct(task, text))
    assert np.mean(right) == pytest.approx(quality(made["bf16"]).task_accuracy.value, abs=0.15)


# -- checkpoints that cannot be served ----------------------------------------------------------------


def damaged(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    return folder


def unsupported(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NoSuchForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("how", [damaged, unsupported])
def test_a_checkpoint_that_cannot_be_served_is_one_clear_line(
    tmp_path: Path, engine_args: EngineArgs, how: Any
) -> None:
    broken = how(Path(shutil.copytree(shipped_checkpoint(), tmp_path / "broken")))
    variant = Variant(name="broken", model=str(broken), parent="bf16", method="none")
    parent = Variant(name="bf16", model=str(shipped_checkpoint()))
    with pytest.raises(EngineError) as error:
        list(
            judge(
                [variant],
                parent,
                Ask(tokens=512, questions=10),
                engine_args=engine_args,
                cache=tmp_path,
            )
        )
    assert "broken" in str(error.value)
    assert "\n" not in str(error.value)
