"""Drawn requests, and how prefixes and conversations are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from serving.errors import InputError
from simulations.traffic.clients import Clients
from simulations.traffic.popularity import first_askers
from simulations.traffic.renewals import FloatArray
from simulations.traffic.segments import IntArray, Segments

_COLUMNS = (
    *("arrived_at_s", "prompt_tokens", "output_tokens", "think_s", "priority"),
    *("patience_s", "key", "conversation", "network_s"),
)


@dataclass(frozen=True)
class Schedule:
    """Drawn requests, sorted by arrival: arrays of equal length (n,).

    Attributes:
        arrived_at_s: when each is sent; of a later turn of a conversation an estimate, since it is
            sent `think_s` after the answer before it.
        prompt_tokens: whole length, with all that is shared.
        segments: what each prompt is made of. None: every prompt is its own.
        after: position of the turn before, -1 for none. None: nobody follows anybody.
        think_s: pause between the answer before and this turn.
        priority: lower is served earlier where the engine schedules by priority. None: all alike.
        patience_s: how long after it was first sent its user gives up. None: never.
        key: which known question it asks: equal keys are equal prompts with answers of one length; -1
            asks what nobody else does. None: nobody asks twice.
        conversation: equal for the turns of one. None: every request is one of its own.
        network_s: round trip between client and gateway. None: none.
        clients: time-outs and retries. None: everybody waits.
    """

    arrived_at_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    segments: Segments | None = None
    after: IntArray | None = None
    think_s: FloatArray | None = None
    priority: IntArray | None = None
    patience_s: FloatArray | None = None
    key: IntArray | None = None
    conversation: IntArray | None = None
    network_s: FloatArray | None = None
    clients: Clients | None = None

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    @property
    def conversations(self) -> bool:
        """Whether some requests wait for answers of others."""
        return self.after is not None and bool((self.after >= 0).any())

    def first_turns(self) -> IntArray:
        """(n,) position of the first turn of each request's conversation."""
        if self.conversation is None:
            return np.arange(len(self))
        _, first, which = np.unique(self.conversation, return_index=True, return_inverse=True)
        return first[which]

    def take(self, rows: IntArray) -> Schedule:
        """Some of the requests, in ascending order; nobody may follow anybody.

        Raises:  InputError: later turns of conversations, which would lose those before them.
        """
        if self.conversations:
            raise InputError(
                "requests that follow others cannot be taken apart",
                remedy="Leave sessions out of the workload.",
            )
        arrays: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows]
            for name in _COLUMNS
        }
        segments = None if self.segments is None else self.segments.take(rows)
        return replace(self, **arrays, segments=segments, after=None)

    def frame(self) -> pd.DataFrame:
        """One row per request."""
        return pd.DataFrame(
            {
                "arrived_at_s": self.arrived_at_s,
                "prompt_tokens": self.prompt_tokens,
                "output_tokens": self.output_tokens,
            }
        )


def single_turns(
    arrived_at_s: FloatArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    segments: Segments | None,
    key: IntArray | None,
) -> Schedule:
    """Requests of one turn; who asks a known question takes prompt and length of its first asker."""
    if key is None:
        return Schedule(arrived_at_s, prompt_tokens, output_tokens, segments)
    same = first_askers(key)
    prompt = prompt_tokens[same]
    segments = Segments.single(same, prompt) if segments is None else segments.take(same)
    return Schedule(arrived_at_s, prompt, output_tokens[same], segments, key=key)


def prefixed(drawn: Schedule, group: IntArray, group_tokens: IntArray) -> Schedule:
    """Every prompt behind a shared prefix; turns of a conversation and known questions keep one.

    Args:    group: (n,) prefix of each request, if it were alone.
             group_tokens: length of each prefix. Groups take the first segment ids.
    """
    leader = drawn.first_turns()
    if drawn.key is not None:
        leader = first_askers(drawn.key)[leader]
    group = group[leader]
    own = drawn.segments or Segments.single(np.arange(len(drawn)), drawn.prompt_tokens)
    tokens = group_tokens[group]
    return replace(
        drawn,
        prompt_tokens=drawn.prompt_tokens + tokens,
        segments=own.after(group, tokens, moved=len(group_tokens)),
    )


def talks(
    starts_s: FloatArray,
    turns: IntArray,
    said_tokens: IntArray,
    output_tokens: IntArray,
    think_s: FloatArray,
    *,
    max_context_tokens: int | None = None,
    key: IntArray | None = None,
) -> Schedule:
    """All turns of all conversations, in order of their estimated arrival.

    A prompt is all that was said before, answers too, and what is added. Arrival is estimated as if
    answers took no time. Ties go by the order in which the conversations start.

    Args:    starts_s, turns, key: of each conversation; the key is that of its first turn.
             said_tokens, output_tokens, think_s: of each turn, one conversation after the other.
             max_context_tokens: a conversation ends before prompt and answer exceed this.
    """
    begins = np.cumsum(turns) - turns
    talk = np.repeat(np.arange(len(turns)), turns)
    n = len(talk)
    row = np.arange(n)
    turn = row - begins[talk]
    text = row.copy()
    if key is not None:
        text[begins] = begins[first_askers(key)]
    said, answer = said_tokens[text], output_tokens[text]
    think_s = np.where(turn == 0, 0.0, think_s)
    at_s = starts_s[talk] + _within(think_s, begins, talk)
    context = _within(said + answer, begins, talk)
    kept = np.ones(n, dtype=bool)
    if max_context_tokens is not None:
        kept = (turn == 0) | (context <= max_context_tokens)
    rows = row[kept]
    order = rows[np.argsort(at_s[kept], kind="stable")]
    position = np.full(n, -1)
    position[order] = np.arange(len(order))
    later = turn[order] > 0
    return Schedule(
        at_s[order],
        context[order] - answer[order],
        answer[order],
        segments=_histories(order, turn, text, said, answer, position),
        after=np.where(later, position[order - later], -1),
        think_s=think_s[order],
        key=None if key is None else np.where(later, -1, key[talk[order]]),
        conversation=talk[order],
    )


def _within(values: IntArray | FloatArray, begins: IntArray, talk: IntArray) -> IntArray:
    """Running sums that begin anew with each conversation."""
    total = np.concatenate([np.zeros(1, dtype=values.dtype), np.cumsum(values)])
    within: IntArray = total[1:] - total[begins][talk]
    return within


def _histories(
    order: IntArray,
    turn: IntArray,
    text: IntArray,
    said: IntArray,
    answer: IntArray,
    position: IntArray,
) -> Segments:
    """Prompts of turns in an order: what was said and answered before, and what is said."""
    counts = 2 * turn[order] + 1
    first = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(first[-1]) - np.repeat(first[:-1], counts)
    source = np.repeat(order - turn[order], counts) + place // 2
    is_answer = place % 2 == 1
    segment = np.where(is_answer, -1 - position[source], text[source])
    tokens = np.where(is_answer, answer[source], said[source])
    return Segments(first, segment, tokens.astype(np.int32))
