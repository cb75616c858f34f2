"""Packed batches of text and chats, for any tokenizer: training, distillation and calibration."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from workbench.model.corpus import Split, documents
from workbench.model.jsonl import documents_of
from workbench.model.tasks import Task, generate

IGNORED = -100
_SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer in a few words.", "Be brief and exact.")
_SYSTEM_SHARE = 0.125
_TASKS_AT_A_TIME = 16
_DOCUMENTS_AT_A_TIME = 2000
_TASK_SHARE = 0.5
_ENCODED: dict[tuple[object, ...], NDArray[np.int64]] = {}


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and what the model should say of them."""

    input_ids: torch.Tensor  # int64 (batch, seq)
    labels: torch.Tensor  # int64 (batch, seq): the input, or -100 where nothing is learnt


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    batch_size: int,
    seq_len: int = 256,
    task_share: float = _TASK_SHARE,
    text: Path | None = None,
    start: int = 0,
    workers: int = 0,
) -> Iterator[Batch]:
    """Yield packed training batches without end.

    Batch i depends on the seed and i alone, so a resumed run goes on with `start`. A row holds
    either text, where every token is learnt and each window comes once in an epoch, or whole
    chats, where the answers are learnt and the rest of the row is padding.

    Args:    tokenizer: any Hugging Face tokenizer; chats are written with its chat template.
             seed: order of the text, and which questions are asked.
             batch_size, seq_len: shape of each batch.
             task_share: share of the rows that hold chats, 0 to 1.
             text: JSONL to take the text from; None is the shipped one.
             start: the first batch to yield.
             workers: processes that make batches ahead; 0 makes each when it is asked for.
    Returns: an infinite iterator of batches.
    Raises:  ValueError: a size below 1, or a share outside 0 to 1.
    """
    if batch_size < 1 or seq_len < 2 or not 0 <= task_share <= 1:
        raise ValueError(
            f"batch_size(={batch_size}) must be at least 1, seq_len(={seq_len}) at least 2 and "
            f"task_share(={task_share}) between 0 and 1"
        )
    rows = Rows(tokenizer, seed=seed, seq_len=seq_len, task_share=task_share, text=text)
    loader = DataLoader(
        rows,
        batch_sampler=([*range(i * batch_size, (i + 1) * batch_size)] for i in count(start)),
        num_workers=workers,
        collate_fn=_together,
        generator=torch.Generator(),  # it must not draw from the one that others use
    )
    return iter(loader)


def _together(rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Batch:
    inputs, labels = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return Batch(inputs, labels)


class Rows:
    """Rows of tokens and labels without end; row i depends on the seed and i alone.

    Args:    text: JSONL with another text than the shipped one.
             task_share: None is half with the shipped text, and no chats with another.
             others: as for `token_batches`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        seq_len: int = 256,
        task_share: float | None = None,
        text: Path | None = None,
    ) -> None:
        if task_share is None:
            task_share = _TASK_SHARE if text is None else 0.0
        self._seed, self._seq_len = seed, seq_len
        self._text_share = 1 - task_share
        self._text: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        if self._text_share > 0:
            self._text = (
                encode_documents(tokenizer, "train")
                if text is None
                else encode_file(tokenizer, text)
            )
            if len(self._text) < 2 * seq_len:
                raise ValueError(
                    f"the text has {len(self._text)} tokens, give at least {2 * seq_len}"
                )
        self._chats = ChatFormat(tokenizer) if task_share > 0 else None

    def __getitem__(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        text_rows = math.floor(row * self._text_share)  # how many rows of text came before this one
        if self._chats is None or math.floor((row + 1) * self._text_share) > text_rows:
            window = _text_window(self._text, text_rows, self._seed, self._seq_len)
            return window, window
        return _chat_row(self._chats, random.Random(f"chat {self._seed} {row}"), self._seq_len)


def heldout_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    seq_len: int = 256,
    text: Path | None = None,
) -> torch.Tensor:
    """Return held-out text to judge a model by, always the same.

    Args:    max_tokens: at most so many tokens, and at most what the held-out documents hold.
             text: JSONL with held-out text; None is the shipped one.
    Returns: int64 tensor (rows, seq_len).
    Raises:  ValueError: max_tokens holds not one row.
    """
    if max_tokens < seq_len:
        raise ValueError(f"max_tokens(={max_tokens}) must be at least seq_len(={seq_len})")
    found = encode_documents(tokenizer, "heldout") if text is None else encode_file(tokenizer, text)
    tokens = found[:max_tokens]
    rows = len(tokens) // seq_len
    return torch.from_numpy(tokens[: rows * seq_len].reshape(rows, seq_len))


def encode_documents(tokenizer: PreTrainedTokenizerBase, split: Split) -> NDArray[np.int64]:
    """Return a split's documents as one stream of tokens, an end token after each.

    It takes seconds, so a process does it once for a tokenizer. Do not write to it.
    """
    return _encode_once(tokenizer, (split,), lambda: documents(split))


def encode_file(tokenizer: PreTrainedTokenizerBase, path: Path) -> NDArray[np.int64]:
    """Return the texts of a JSONL file as `encode_documents` does."""
    changed = path.stat().st_mtime_ns if path.is_file() else None
    return _encode_once(tokenizer, (path, changed), lambda: documents_of(path))


def _encode_once(
    tokenizer: PreTrainedTokenizerBase, what: tuple[object, ...], texts: Callable[[], list[str]]
) -> NDArray[np.int64]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return encode(tokenizer, texts())
    digest = hashlib.sha256(backend.to_str().encode()).hexdigest()
    key = (digest, tokenizer.eos_token_id, *what)
    if key not in _ENCODED:
        _ENCODED[key] = encode(tokenizer, texts())
    return _ENCODED[key]


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return texts as one stream of tokens, an end token after each."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = []
    for begin in range(0, len(texts), _DOCUMENTS_AT_A_TIME):
        some = list(texts[begin : begin + _DOCUMENTS_AT_A_TIME])
        encoded = tokenizer(
            some, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
        parts += [np.array([*ids, *end], dtype=np.int64) for ids in encoded]
    return np.concatenate(parts)


def _text_window(text: NDArray[np.int64], index: int, seed: int, seq_len: int) -> NDArray[np.int64]:
    """Window number `index`: each epoch shifts the windows and goes through them in a new order."""
    windows = len(text) // seq_len - 1
    epoch, position = divmod(index, windows)
    shift, order = _epoch(windows, seed, epoch, seq_len)
    begin = shift + int(order[position]) * seq_len
    return text[begin : begin + seq_len]


@lru_cache(maxsize=2)
def _epoch(windows: int, seed: int, epoch: int, seq_len: int) -> tuple[int, NDArray[np.int64]]:
    rng = np.random.default_rng([seed, epoch])
    return int(rng.integers(seq_len)), rng.permutation(windows)


def _chat_row(
    chats: ChatFormat, rng: random.Random, seq_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack whole chats into a row until the next one would not fit; cut only a lone long one."""
    inputs: list[int] = []
    labels: list[int] = []
    while True:
        tasks = generate(_TASKS_AT_A_TIME, split="train", seed=rng.getrandbits(62))
        systems = [_system_prompt(rng) for _ in tasks]
        for prompt, answer in chats.encode(tasks, systems):
            if inputs and len(inputs) + len(prompt) + len(answer) > seq_len:
                gap = seq_len - len(inputs)
                inputs += [chats.pad_id] * gap
                labels += [IGNORED] * gap
            inputs += prompt + answer
            labels += [IGNORED] * len(prompt) + answer
            if len(inputs) >= seq_len:
                return np.array(inputs[:seq_len]), np.array(labels[:seq_len])


def _system_prompt(rng: random.Random) -> str | None:
    return rng.choice(_SYSTEM_PROMPTS) if rng.random() < _SYSTEM_SHARE else None


class ChatFormat:
    """A tokenizer's chat template, cut once into the pieces around question and answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        pad = tokenizer.pad_token_id
        self.pad_id: int = next(i for i in (pad, tokenizer.eos_token_id, 0) if i is not None)
        self._pieces: dict[str | None, tuple[str, str, str]] = {None: self._cut(None)}
        for system in _SYSTEM_PROMPTS:
            try:
                self._pieces[system] = self._cut(system)
            except TemplateError:  # some templates know no system role
                self._pieces[system] = self._pieces[None]

    def _cut(self, system: str | None) -> tuple[str, str, str]:
        question, answer = "QUESTION-HERE", "ANSWER-HERE"
        if self.tokenizer.chat_template is None:
            return "", "\n", answer + (self.tokenizer.eos_token or "\n")
        chat = [{"role": "user", "content": question}]
        if system is not None:
            chat.insert(0, {"role": "system", "content": system})
        prompt = self._render(chat, add_generation_prompt=True)
        whole = self._render([*chat, {"role": "assistant", "content": answer}])
        if not whole.startswith(prompt):
            prompt = whole[: whole.index(answer)]
        before, between = prompt.split(question)
        return before, between, whole[len(prompt) :]

    def _render(self, chat: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(text)

    def encode(
        self, tasks: list[Task], systems: list[str | None]
    ) -> list[tuple[list[int], list[int]]]:
        """Return each task's prompt and answer as token ids."""
        prompts, answers = [], []
        for task, system in zip(tasks, systems, strict=True):
            before, between, after = self._pieces[system]
            prompts.append(before + task.question + between)
            answers.append(after.replace("ANSWER-HERE", task.answer))
        encoded = self.tokenizer(prompts + answers, add_special_tokens=False)["input_ids"]
        return list(zip(encoded[: len(tasks)], encoded[len(tasks) :], strict=True))
