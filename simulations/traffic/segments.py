"""What prompts are made of, as flat arrays: millions of prompts, some of which begin alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, overload

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Prompt = tuple[tuple[int, int], ...]
"""(segment id, tokens) of one prompt in order."""


@dataclass(frozen=True, eq=False)
class Segments(Sequence[Prompt]):
    """The segments of all prompts, one prompt after the other; a sequence of `Prompt`.

    Prompts that begin with the same ids share that prefix really. An id below 0 is the answer of
    request -1 - id.

    Attributes:
        first: (n + 1,) where each prompt's segments begin.
        segment: ids; tokens: how long each is.
    """

    first: IntArray
    segment: IntArray
    tokens: Int32Array

    @classmethod
    def of(cls, prompts: Iterable[Iterable[tuple[int, int]]]) -> Self:
        """From pairs (segment id, tokens) of each prompt."""
        rows = [list(prompt) for prompt in prompts]
        pairs = np.array([pair for row in rows for pair in row], dtype=np.int64).reshape(-1, 2)
        return cls(_starts([len(row) for row in rows]), pairs[:, 0], pairs[:, 1].astype(np.int32))

    @classmethod
    def single(cls, segment: IntArray, tokens: IntArray) -> Self:
        """One segment for each prompt."""
        return cls(np.arange(len(segment) + 1), segment, tokens.astype(np.int32))

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, at: int) -> Prompt: ...
    @overload
    def __getitem__(self, at: slice) -> list[Prompt]: ...
    def __getitem__(self, at: int | slice) -> Prompt | list[Prompt]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        i = range(len(self))[at]
        rows = slice(int(self.first[i]), int(self.first[i + 1]))
        pairs = zip(self.segment[rows].tolist(), self.tokens[rows].tolist(), strict=True)
        return tuple(pairs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segments):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("first", "segment", "tokens")
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def counts(self) -> IntArray:
        """(n,) segments of each prompt."""
        return np.diff(self.first)

    def lengths(self) -> IntArray:
        """(n,) tokens of each prompt."""
        total = np.concatenate([[0], np.cumsum(self.tokens, dtype=np.int64)])
        lengths: IntArray = total[self.first[1:]] - total[self.first[:-1]]
        return lengths

    def take(self, prompts: IntArray) -> Segments:
        """The segments of some prompts, in that order, one as often as it is asked for."""
        counts = self.counts[prompts]
        first = _starts(counts)
        at = np.arange(first[-1]) + np.repeat(self.first[prompts] - first[:-1], counts)
        return Segments(first, self.segment[at], self.tokens[at])

    def after(self, segment: IntArray, tokens: IntArray, *, moved: int) -> Segments:
        """Each prompt behind one more segment; its own ids (no answers) are moved up."""
        n = len(self)
        first = self.first + np.arange(n + 1)
        own = np.ones(first[-1], dtype=bool)
        own[first[:-1]] = False
        ids = np.empty(first[-1], dtype=np.int64)
        lengths = np.empty(first[-1], dtype=np.int32)
        ids[own] = np.where(self.segment < 0, self.segment, self.segment + moved)
        lengths[own] = self.tokens
        ids[first[:-1]] = segment
        lengths[first[:-1]] = tokens
        return Segments(first, ids, lengths)


def shared_tokens(segments: Segments, output_tokens: IntArray) -> Int32Array:
    """Tokens at the beginning of prompt and answer that another request has too.

    All prompts at once, one segment deeper each time: requests of one place in the tree of prefixes
    are told apart by their next segment (of an answer, its own id), and who is alone then is done.

    Args:    output_tokens: (n,) of the answers.
    Returns: (n,).
    """
    n, counts = len(segments), segments.counts
    shared = np.zeros(n, dtype=np.int32)
    asking, place = np.arange(n), np.zeros(n, dtype=np.int64)
    depth = 0
    while len(asking):
        said = depth < counts[asking]
        at = segments.first[asking[said]] + depth
        step, tokens = -1 - asking, output_tokens[asking]
        step[said], tokens[said] = segments.segment[at], segments.tokens[at]
        step, count = _numbered(step)
        rows = np.flatnonzero(count[step] > 1)  # the others are alone wherever they are
        place, count = _numbered(place[rows] * len(count) + step[rows])
        together = count[place] > 1
        rows, place = rows[together], place[together]
        shared[asking[rows]] += tokens[rows].astype(np.int32)
        going = said[rows]
        asking, place = asking[rows][going], place[going]
        depth += 1
    return shared


def _numbered(values: IntArray) -> tuple[IntArray, IntArray]:
    """A small number from 0 on for each different value, and how often each number is there.

    Ids are mostly dense, and need no sorting then.
    """
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if high - low > 4 * len(values):
        _, number, count = np.unique(values, return_inverse=True, return_counts=True)
        return number, count
    return values - low, np.bincount(values - low)


def _starts(counts: Sequence[int] | IntArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
