from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from workbench.model.batches import (
    IGNORED,
    Batch,
    ChatFormat,
    Rows,
    heldout_tokens,
    token_batches,
)
from workbench.model.corpus import documents
from workbench.model.tasks import Task
from workbench.model.tokenizer import END, train_tokenizer

pytestmark = pytest.mark.usefixtures("small_corpus")
TASK = Task("capital", "What is the capital of France?", "Paris")


@pytest.fixture
def tokenizer(small_corpus: None) -> PreTrainedTokenizerFast:
    return train_tokenizer(documents("train"), vocab_size=512, max_tokens=256)


def _same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)


def test_the_tokenizer_is_the_same_for_the_same_text(tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(documents("train"), vocab_size=512, max_tokens=256)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == 512


def test_the_tokenizer_keeps_every_byte(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "def f(x):\n\treturn 'ß 漢字 🙂' + str(1234)  \n\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_batches_follow_from_seed_and_number(tokenizer: PreTrainedTokenizerFast) -> None:
    first = list(islice(token_batches(tokenizer, seed=3, batch_size=4), 5))
    later = next(token_batches(tokenizer, seed=3, batch_size=4, start=4))
    other = next(token_batches(tokenizer, seed=4, batch_size=4))
    assert _same(first[4], later)
    assert not _same(first[0], other)
    assert first[0].input_ids.shape == first[0].labels.shape == (4, 256)
    assert first[0].input_ids.dtype == first[0].labels.dtype == torch.int64


@pytest.mark.parametrize("task_share", [0.0, 0.25, 0.5, 1.0])
def test_the_mix_is_as_asked(tokenizer: PreTrainedTokenizerFast, task_share: float) -> None:
    batches = islice(token_batches(tokenizer, seed=0, batch_size=3, task_share=task_share), 8)
    chats = [bool((row == IGNORED).any()) for batch in batches for row in batch.labels]
    assert sum(chats) == round(24 * task_share)


def test_an_epoch_shows_every_window_once(tokenizer: PreTrainedTokenizerFast) -> None:
    batches = token_batches(tokenizer, seed=0, batch_size=1, seq_len=64, task_share=0.0)
    seen = [tuple(batch.input_ids[0].tolist()) for batch in islice(batches, 200)]
    assert len(set(seen)) == 200


def test_chats_learn_answers_and_end_token_only(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = next(token_batches(tokenizer, seed=0, batch_size=1, task_share=1.0))
    inputs, labels = batch.input_ids[0], batch.labels[0]
    learnt = labels != IGNORED
    assert torch.equal(inputs[learnt], labels[learnt])
    text = tokenizer.decode(inputs)
    answers = [part.split(END)[0] for part in text.split("<|assistant|>")[1:]]
    assert all(answer.startswith(" ") for answer in answers)
    assert tokenizer.decode(labels[learnt]) == "".join(answer + END for answer in answers)
    assert text.startswith(("<|user|>", "<|system|>"))


def test_the_served_prompt_is_the_trained_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    ((prompt, answer),) = ChatFormat(tokenizer).encode([TASK], [None])
    served = tokenizer.apply_chat_template(TASK.messages, add_generation_prompt=True)
    assert served["input_ids"] == prompt
    assert tokenizer.decode(answer) == " Paris" + END


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}"
        "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}",
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        "{% if add_generation_prompt %}think: {% endif %}",
    ],
    ids=["no template", "no system role", "prompt not in the whole chat"],
)
def test_foreign_templates_work(tokenizer: PreTrainedTokenizerFast, template: str | None) -> None:
    tokenizer.chat_template = template
    chats = ChatFormat(tokenizer)
    for system in (None, "Be brief and exact."):
        ((prompt, answer),) = chats.encode([TASK], [system])
        assert TASK.question in tokenizer.decode(prompt)
        assert TASK.answer not in tokenizer.decode(prompt)
        assert tokenizer.decode(answer).lstrip("[").startswith(("Paris", "assistant: Paris"))


def test_heldout_tokens_are_rows_of_heldout_text(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = heldout_tokens(tokenizer, max_tokens=1000, seq_len=128)
    assert rows.shape == (7, 128)
    assert documents("heldout")[0].startswith(tokenizer.decode(rows[0]))


def test_arguments_are_checked(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"task_share\(=1.5\)"):
        token_batches(tokenizer, seed=0, batch_size=1, task_share=1.5)
    with pytest.raises(ValueError, match=r"batch_size\(=0\)"):
        token_batches(tokenizer, seed=0, batch_size=0)
    with pytest.raises(ValueError, match=r"max_tokens\(=10\)"):
        heldout_tokens(tokenizer, max_tokens=10)


def test_own_text_holds_chats_where_they_are_asked_for(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    texts = [f"number {i} of a text of one's own " * 20 for i in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    alone = Rows(tokenizer, seed=0, seq_len=64, text=path)
    mixed = Rows(tokenizer, seed=0, seq_len=64, text=path, task_share=0.25)
    chats = [bool((mixed[row][1] == IGNORED).any()) for row in range(40)]
    assert sum(chats) == 10
    assert not any((alone[row][1] == IGNORED).any() for row in range(40))
    assert "one's own" in tokenizer.decode(alone[0][0])
    rows = heldout_tokens(tokenizer, max_tokens=256, seq_len=64, text=path)
    assert "number 0 of a text" in tokenizer.decode(rows[0])


def test_workers_make_the_same_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    own, others = (
        list(islice(token_batches(tokenizer, seed=1, batch_size=4, start=2, workers=workers), 4))
        for workers in (0, 2)
    )
    assert all(_same(a, b) for a, b in zip(own, others, strict=True))
