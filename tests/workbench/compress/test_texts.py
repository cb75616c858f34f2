"""What a variant has seen is left out of what it is judged on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from serving.errors import InputError
from workbench.compress.texts import (
    Seen,
    documents_of,
    exam,
    fitting_rows,
    seen_rows,
    tasks_of,
)
from workbench.model import shipped_checkpoint
from workbench.model.corpus import documents
from workbench.model.tasks import generate

NOTHING = Seen.of([])
LONG = [text for text in documents("train") if 20_000 < len(text) < 40_000]


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return AutoTokenizer.from_pretrained(shipped_checkpoint())


def lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_a_passage_is_known_wherever_it_stands() -> None:
    long, other = LONG[:2]
    seen = Seen.of([long])
    assert seen.knows(long)
    assert seen.knows(long[700:2700])
    assert seen.knows("  " + long[700:2700].replace("\n", "\n\n").upper())
    assert not seen.knows(other)
    # A third of it is new text with some old in it.
    assert not seen.knows(other[:4000] + long[:2000])


def test_a_short_question_is_known_as_a_whole() -> None:
    seen = Seen.of(["What is 3 + 4?"])
    assert seen.knows("what is  3 + 4?")
    assert not seen.knows("What is 3 + 5?")


def test_fingerprints_join_and_are_kept(tmp_path: Path) -> None:
    one, two = LONG[:2]
    both = Seen.of([one]) | Seen.of([two])
    both.write(tmp_path)
    again = Seen.read(tmp_path)
    assert again.knows(one)
    assert again.knows(two)
    assert len(Seen.read(tmp_path / "nowhere").hashes) == 0
    # One run in 32 is kept, and one for the whole.
    share = len(Seen.of([one]).hashes) / len(one)
    assert 0.7 / 32 < share < 1.3 / 32


def test_shipped_text_to_fit_to_is_not_in_the_exam(tokenizer: object) -> None:
    rows = fitting_rows(tokenizer, 200, seed=0)
    paper = exam(tokenizer, tokens=20_000, questions=100, seed=0, seen=seen_rows(tokenizer, rows))
    assert "left out" not in paper.described
    assert len(paper.rows) == 20_000 // 256
    assert len(paper.prompts) == len(paper.answers) == 100


def test_what_was_seen_is_left_out_and_counted(tokenizer: object, tmp_path: Path) -> None:
    texts = LONG[:3]
    heldout = lines(tmp_path / "text.jsonl", *({"text": text[:6000]} for text in texts))
    asked = [
        {"question": t.question, "answer": t.answer} for t in generate(9, split="train", seed=1)
    ]
    questions = lines(tmp_path / "questions.jsonl", *asked)
    seen = Seen.of([texts[0][:6000], asked[0]["question"]])
    clean, dirty = (
        exam(
            tokenizer,
            tokens=10**6,
            questions=50,
            seed=0,
            seen=known,
            text=heldout,
            tasks=questions,
        )
        for known in (NOTHING, seen)
    )
    assert "left out" not in clean.described
    gone = len(clean.rows) - len(dirty.rows)
    assert 3 <= gone < len(clean.rows) / 2  # the first document's rows, and no others
    assert len(dirty.answers) == len(clean.answers) - 1
    assert f"{gone + 1} left out as seen in fitting" in dirty.described
    assert dirty.key != clean.key


def test_an_exam_with_nothing_left_is_refused(tokenizer: object, tmp_path: Path) -> None:
    text = LONG[0][:6000]
    heldout = lines(tmp_path / "text.jsonl", {"text": text})
    with pytest.raises(InputError, match=r"nothing is left of .*text\.jsonl"):
        exam(tokenizer, tokens=10**6, questions=5, seed=0, seen=Seen.of([text]), text=heldout)


def test_lines_of_every_kind_are_read(tmp_path: Path) -> None:
    found = documents_of(
        lines(
            tmp_path / "mixed.jsonl",
            {"text": "plain"},
            {"messages": [{"role": "user", "content": "hello"}, {"content": "there"}]},
            {"question": "why?", "answer": "so"},
        )
    )
    assert found == ["plain", "hello\nthere", "why?\nso"]
    (task,) = tasks_of(lines(tmp_path / "qa.jsonl", {"question": "why?", "answer": " so "}))
    assert (task.question, task.answer) == ("why?", "so")


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "is empty"), ("[1]\n", ":1 is not"), ('{"text": "a"}\n{"x": 1}\n', ":2 is not")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        documents_of(path)
    with pytest.raises(InputError, match="cannot read"):
        tasks_of(tmp_path / "nowhere.jsonl")
