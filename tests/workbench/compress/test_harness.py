"""lm-evaluation-harness on the engine, with tasks of our own: its scores are those of the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from serving.errors import InputError
from serving.plan import EngineArgs, Variant
from workbench.apart import Child, Link
from workbench.compress import Ask, harness, judge
from workbench.compress.checkpoint import load
from workbench.model import shipped_checkpoint
from workbench.model.batches import ChatFormat
from workbench.model.tasks import generate
from workbench.settings import engine_for_this_machine

N = 24
_GENERATED = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: " {{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 24}}
metric_list:
  - metric: exact_match
"""
_CHOSEN = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: 0
doc_to_choice: "{{{{[answer, other]}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def questions() -> list[dict[str, str]]:
    """Prompts as the model knows them, the right answer and a wrong one."""
    tasks = generate(N, split="heldout", seed=0)
    prompts = ChatFormat(AutoTokenizer.from_pretrained(shipped_checkpoint())).encode(
        tasks, [None] * N
    )
    tokenizer = AutoTokenizer.from_pretrained(shipped_checkpoint())
    others = [task.answer for task in tasks[1:] + tasks[:1]]
    return [
        {"prompt": tokenizer.decode(prompt), "answer": task.answer, "other": other + " no"}
        for task, (prompt, _), other in zip(tasks, prompts, others, strict=True)
    ]


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory, questions: list[dict[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.json"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    for name, task in (("asked", _GENERATED), ("chosen", _CHOSEN)):
        (folder / f"{name}.yaml").write_text(task.format(name=name, data=data))
    return folder


@pytest.fixture(scope="module")
def args() -> EngineArgs:
    return engine_for_this_machine()


def _run(
    link: Link, variant: Variant, args: EngineArgs, tasks: Sequence[str], include: Path
) -> None:
    from workbench.measure.vllm_scores import ScoringEngine

    with ScoringEngine(variant, args) as engine:
        tokenizer = AutoTokenizer.from_pretrained(variant.model)
        link.send(harness.run_benchmarks(engine, tokenizer, tasks, include=include))
        link.send(harness.run_benchmarks(engine, tokenizer, tasks, include=include, limit=5))
        harness.run_benchmarks(engine, tokenizer, ["no-such-task"], include=include)


@pytest.mark.vllm
def test_its_scores_are_those_of_the_model(
    include: Path, args: EngineArgs, questions: list[dict[str, str]]
) -> None:
    variant = Variant(name="bf16", model=str(shipped_checkpoint()))
    found = []
    with (
        pytest.raises(InputError, match=r"benchmarks\(=\['no-such-task'\]\) are unknown"),
        Child(_run, variant, args, ["asked", "chosen"], include) as child,
    ):
        found += child
    whole, some = found
    assert set(whole) == {"asked", "chosen"}
    assert [len(whole[task]) for task in whole] == [N, N]
    assert {task: scores.tolist() for task, scores in some.items()} == {
        task: scores[:5].tolist() for task, scores in whole.items()
    }
    model, tokenizer = load(shipped_checkpoint())
    model.float()
    chosen = []
    for question in questions:
        context = tokenizer.encode(question["prompt"], add_special_tokens=False)
        scores = []
        for answer in (question["answer"], question["other"]):
            row = tokenizer.encode(question["prompt"] + answer, add_special_tokens=False)
            with torch.no_grad():
                logp = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
            own = logp[torch.arange(len(row) - 1), torch.tensor(row[1:])]
            scores.append(float(own[len(context) - 1 :].sum()))
        chosen.append(scores[0] > scores[1])
    assert np.mean(whole["chosen"] == np.array(chosen, float)) > 0.95
    assert whole["asked"].mean() > 0.75


@pytest.mark.vllm
def test_benchmarks_stand_in_the_quality(include: Path, args: EngineArgs, tmp_path: Path) -> None:
    parent = Variant(name="bf16", model=str(shipped_checkpoint()))
    ask = Ask(tokens=512, questions=10, benchmarks=("chosen",), limit=12, include=include)
    (quality,) = judge([parent], parent, ask, engine_args=args, cache=tmp_path)
    assert quality.benchmarks["chosen"].n == 12
    assert quality.benchmark_recovery["chosen"].value == 1


def test_a_missing_harness_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="lm-evaluation-harness") as error:
        harness.check_installed()
    assert "evals" in error.value.remedy


def test_a_task_without_a_score_for_each_sample_is_refused() -> None:
    with pytest.raises(InputError, match=r"benchmark\(='odd'\)"):
        harness._scores("odd", [{"doc_id": 0, "word_perplexity": 3.0}])
    samples = [
        {"doc_id": 1, "acc": 1.0, "filter": "a"},
        {"doc_id": 0, "acc": 0.0, "filter": "a"},
        {"doc_id": 0, "acc": 1.0, "filter": "b"},
    ]
    assert harness._scores("fine", samples).tolist() == [0, 1]
