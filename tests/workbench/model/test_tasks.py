from __future__ import annotations

import importlib
import re
from collections import Counter

import pytest

from workbench.model import facts
from workbench.model.tasks import KINDS, Task, generate, is_correct


def test_same_seed_same_tasks() -> None:
    assert generate(50, split="train", seed=7) == generate(50, split="train", seed=7)
    assert generate(50, split="train", seed=7) != generate(50, split="train", seed=8)


def test_a_longer_draw_begins_with_the_shorter() -> None:
    assert generate(60, split="heldout", seed=1)[:20] == generate(20, split="heldout", seed=1)


def test_no_question_is_in_both_splits() -> None:
    train = {task.question for task in generate(10_000, split="train", seed=0)}
    heldout = {task.question for task in generate(2_000, split="heldout", seed=0)}
    assert not train & heldout


def test_heldout_numbers_are_trained_on_in_no_wording() -> None:
    def numbers(split: str) -> set[tuple[str, ...]]:
        tasks = generate(4_000, split=split, seed=0)  # type: ignore[arg-type]
        ruled = [t for t in tasks if t.kind in ("addition", "comparison", "sequence")]
        return {(t.kind, *sorted(re.findall(r"\d+", t.question))) for t in ruled}

    assert not numbers("train") & numbers("heldout")


def test_heldout_facts_are_known_from_training() -> None:
    kinds = {"capital", "module", "opposite", "letter"}
    train = {(t.kind, t.answer) for t in generate(10_000, split="train", seed=0)}
    heldout = {(t.kind, t.answer) for t in generate(2_000, split="heldout", seed=0)}
    assert {pair for pair in heldout if pair[0] in kinds} <= train


def test_every_kind_is_about_as_likely() -> None:
    counts = Counter(task.kind for task in generate(5_500, split="train", seed=0))
    assert set(counts) == set(KINDS)
    assert all(400 < count < 600 for count in counts.values())


def test_answers_are_right() -> None:
    for task in generate(3_000, split="train", seed=5):
        numbers = [int(n) for n in re.findall(r"\d+", task.question)]
        if task.kind == "addition":
            assert int(task.answer) == sum(numbers)
        elif task.kind == "comparison":
            assert int(task.answer) == (max if "larger" in task.question else min)(numbers)
        elif task.kind == "sequence":
            assert int(task.answer) - numbers[-1] == numbers[1] - numbers[0]
        elif task.kind == "reverse":
            words = task.question.split(": ")[1].split()
            assert task.answer.split() == words[::-1]
        elif task.kind == "count":
            assert int(task.answer) == len(task.question.split(": ")[1].split())
        elif task.kind == "pick":
            words = task.question.split(": ")[1].split()
            ordinal = next(o for o in facts.ORDINALS if f" {o} " in task.question)
            assert task.answer == words[facts.ORDINALS.index(ordinal)]


def test_modules_define_what_the_table_says() -> None:
    for name, module in facts.MODULES.items():
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_opposites_are_unambiguous() -> None:
    words = [*facts.OPPOSITES, *facts.OPPOSITES.values()]
    assert len(words) == len(set(words))


def test_white_space_around_an_answer_is_forgiven_and_nothing_else() -> None:
    task = Task("addition", "What is 2 + 2?", "4")
    assert task.messages == [{"role": "user", "content": "What is 2 + 2?"}]
    assert is_correct(task, " 4\n")
    assert not is_correct(task, "44")
    assert not is_correct(task, "")


def test_unknown_split_raises() -> None:
    with pytest.raises(ValueError, match="all"):
        generate(1, split="all", seed=0)  # type: ignore[arg-type]
