"""The text a variant is fitted to, the text it is judged on, and that the two never meet.

Calibration and training text leaves a fingerprint beside the checkpoint, which its children inherit.
What a variant has seen is left out of what it is judged on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from workbench.model.jsonl import documents_of, tasks_of
from workbench.model.tasks import generate

GRAM = 50
"""Characters of one fingerprint."""
SEEN_SHARE = 0.5
"""A text counts as seen when this share of its fingerprints is known, or the whole of it is."""
SEEN_FILE = "seen.npy"
_ONE_IN = np.uint64(32)
_FEW = 4
_BASE = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_BASE, -1, 2**64)


@dataclass(frozen=True)
class Seen:
    """Fingerprints of texts: hashes of one in 32 runs of 50 characters, and of each whole text.

    A run is chosen by its hash alone, so that the same passage gives the same fingerprints wherever
    it stands.

    Source:  Manber, Finding similar files in a large file system, USENIX 1994 (hashes modulo n).
    """

    hashes: NDArray[np.uint64]  # sorted

    @classmethod
    def of(cls, texts: Iterable[str]) -> Seen:
        parts = [np.append(_grams(text), _whole(text)) for text in texts]
        return cls(np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64))

    @classmethod
    def read(cls, folder: str | Path) -> Seen:
        """What the checkpoint in a folder was fitted to; nothing where it does not say."""
        path = Path(folder) / SEEN_FILE
        return cls(np.load(path) if path.is_file() else np.zeros(0, dtype=np.uint64))

    def write(self, folder: Path) -> None:
        np.save(folder / SEEN_FILE, self.hashes)

    def __or__(self, other: Seen) -> Seen:
        return Seen(np.union1d(self.hashes, other.hashes))

    def knows(self, text: str) -> bool:
        """Whether a text, or most of it, is among those of the fingerprint."""
        if self._has(_whole(text)).all():
            return True
        grams = _grams(text)
        return len(grams) >= _FEW and float(self._has(grams).mean()) >= SEEN_SHARE

    def _has(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if not len(self.hashes):
            return np.zeros(len(hashes), dtype=bool)
        at = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        found: NDArray[np.bool_] = self.hashes[at] == hashes
        return found


@dataclass(frozen=True)
class Exam:
    """What models are judged on.

    Attributes:
        rows: token ids of the text, sequence by sequence.
        prompts: token ids of each question, ready for the answer.
        answers: the only right one of each.
        answer_tokens: the longest answer there is, and some room.
        described: in words.
        key: digest of all of it.
    """

    rows: list[list[int]]
    prompts: list[list[int]]
    answers: list[str]
    answer_tokens: int
    described: str

    @property
    def longest(self) -> int:
        """Tokens of the longest row or question, with what is generated behind it."""
        asked = max(len(prompt) for prompt in self.prompts) + self.answer_tokens
        return max(asked, max(len(row) for row in self.rows) + 1)

    @cached_property
    def key(self) -> str:
        content = json.dumps([self.rows, self.prompts, self.answers])
        return blake2b(content.encode(), digest_size=8).hexdigest()


def fitting_rows(
    tokenizer: Any,
    n: int,
    *,
    seed: int,
    seq_len: int = 256,
    text: Path | None = None,
    task_share: float | None = None,
) -> list[list[int]]:
    """Rows to calibrate with: shipped text and tasks of the training split, or a JSONL file.

    Args:    task_share: share of the rows that hold shipped tasks; None is half of them with the
                 shipped text, none with a file.
    """
    from workbench.model.batches import Rows

    rows = Rows(tokenizer, seed=seed, seq_len=seq_len, text=text, task_share=task_share)
    return [rows[i][0].tolist() for i in range(n)]


def exam(
    tokenizer: Any,
    *,
    tokens: int,
    questions: int,
    seed: int,
    seen: Seen,
    text: Path | None = None,
    tasks: Path | None = None,
    seq_len: int = 256,
) -> Exam:
    """Held-out text and questions, without what the judged model has seen.

    Args:    tokens: of text, at most.
             questions: how many, at most.
             text, tasks: JSONL files; None takes the shipped ones.
    Raises:  InputError: nothing is left, or a file that is none.
    """
    from workbench.model.batches import ChatFormat, encode_file, heldout_tokens

    if text is None:
        rows = heldout_tokens(tokenizer, max_tokens=tokens, seq_len=seq_len).tolist()
        source = "the shipped held-out text"
    else:
        stream = encode_file(tokenizer, text)[:tokens]
        rows = stream[: len(stream) // seq_len * seq_len].reshape(-1, seq_len).tolist()
        source = text.name
    chosen = generate(questions, split="heldout", seed=seed) if tasks is None else tasks_of(tasks)
    kept_rows = [row for row in rows if not seen.knows(tokenizer.decode(row))]
    kept = [task for task in chosen[:questions] if not seen.knows(task.question)]
    if not kept_rows or not kept:
        what = text or source if not kept_rows else tasks or "the generated questions"
        raise InputError(
            f"nothing is left of {what} to judge on: {len(rows) - len(kept_rows)} of {len(rows)}"
            f" rows and {len(chosen) - len(kept)} questions were seen in fitting or are too short",
            remedy=f"Give at least {seq_len} tokens of text that it was not fitted to.",
        )
    left_out = len(rows) - len(kept_rows) + min(questions, len(chosen)) - len(kept)
    described = (
        f"{len(kept_rows) * seq_len:,} tokens of {source}, {len(kept)} questions of"
        f" {'the shipped tasks' if tasks is None else tasks.name}"
        + (f"; {left_out} left out as seen in fitting" if left_out else "")
    )
    encoded = ChatFormat(tokenizer).encode(kept, [None] * len(kept))
    return Exam(
        rows=kept_rows,
        prompts=[prompt for prompt, _ in encoded],
        answers=[task.answer for task in kept],
        answer_tokens=max(len(answer) for _, answer in encoded) + 4,
        described=described,
    )


def fingerprints(text: str) -> list[int]:
    """Those of a text: of some of its runs of characters, and of the whole of it."""
    found: list[int] = np.append(_grams(text), _whole(text)).tolist()
    return found


def _whole(text: str) -> NDArray[np.uint64]:
    known = " ".join(text.lower().split()).encode()
    return np.frombuffer(blake2b(known, digest_size=8).digest(), dtype=np.uint64)


def _grams(text: str) -> NDArray[np.uint64]:
    """Hashes of all runs of GRAM bytes of the text, white space evened out, of which one in 32."""
    raw = np.frombuffer(" ".join(text.lower().split()).encode(), dtype=np.uint8)
    if len(raw) < GRAM:
        return np.zeros(0, dtype=np.uint64)
    # The polynomial of each run from sums over prefixes: an odd base has an inverse modulo 2^64.
    n = len(raw) - GRAM + 1
    sums = np.zeros(len(raw) + 1, dtype=np.uint64)
    np.cumsum(raw * _powers(_INVERSE, len(raw)), out=sums[1:])
    hashes = (sums[GRAM:] - sums[:n]) * _powers(_BASE, len(raw))[GRAM - 1 :]
    # The low bits of a polynomial say little; a multiplication brings the high ones down.
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    chosen: NDArray[np.uint64] = hashes[hashes % _ONE_IN == 0]
    return chosen


def _powers(base: int, n: int) -> NDArray[np.uint64]:
    """1, base, base^2, ... modulo 2^64."""
    powers = np.full(n, base % 2**64, dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def seen_file(path: Path) -> Seen:
    """The fingerprint of a JSONL file, all of it: which rows of it come is nobody's matter."""
    return _seen_file(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _seen_file(path: Path, changed: int) -> Seen:
    return Seen.of(documents_of(path))


def seen_rows(tokenizer: Any, rows: Sequence[Sequence[int]]) -> Seen:
    """The fingerprint of rows of tokens."""
    return Seen.of(tokenizer.batch_decode(rows))
