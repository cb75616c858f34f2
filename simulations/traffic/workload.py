"""A Workload: arrivals, lengths, what is shared between prompts, and the seed that draws it all.

Arrivals, prompt lengths, output lengths, prefixes and conversations have a random stream each, so
that changing one leaves the others alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from serving.values import Value
from simulations.traffic.arrivals import Arrivals, FloatArray, Replay
from simulations.traffic.lengths import IntArray, Lengths, Recorded
from simulations.traffic.traces import Trace

Segments = tuple[tuple[tuple[int, int], ...], ...]
_LONGER_S = 1e-6


@dataclass(frozen=True)
class Schedule:
    """Drawn requests, sorted by arrival: arrays of equal length (n,).

    Attributes:
        arrived_at_s: when each is sent; of a later turn of a conversation an estimate, since it is
            sent `think_s` after the answer before it.
        prompt_tokens: whole length, with all that is shared.
        segments: per request (segment id, tokens) in order; prompts that begin with the same ones
            share that prefix really. An id below 0 is the answer of request -1 - id. None: every
            prompt is its own.
        after: position of the turn before, -1 for none. None: nobody follows anybody.
        think_s: pause between the answer before and this turn.
        priority: lower is served earlier where the engine schedules by priority. None: all alike.
        patience_s: how long after it was sent its client gives up. None: never.
        key: which question it asks, word for word; -1 for one of its own. None: all are.
        conversation: a number for each; None: as `after` has it.
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

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    @property
    def conversations(self) -> bool:
        """Whether some requests wait for answers of others."""
        return self.after is not None and bool((self.after >= 0).any())

    def frame(self) -> pd.DataFrame:
        """One row per request."""
        return pd.DataFrame(
            {
                "arrived_at_s": self.arrived_at_s,
                "prompt_tokens": self.prompt_tokens,
                "output_tokens": self.output_tokens,
            }
        )


class SharedPrefix(Value):
    """Some system prompts, one of which every prompt begins with, in addition to its own tokens."""

    tokens: Lengths
    groups: int = Field(1, ge=1)
    """How many different ones."""
    zipf: float = Field(0.0, ge=0)
    """Popularity of the k-th falls as k^-zipf; 0 makes all alike."""


class Sessions(Value):
    """Conversations: each arrival is a first turn, and later turns follow the answers.

    The workload's prompt_tokens are what the user adds in each turn; the prompt is all that was said.
    """

    turns: Lengths
    think_s: float = Field(5.0, ge=0)
    """Mean pause between an answer and the next turn; exponentially distributed."""
    max_context_tokens: int | None = Field(None, ge=2)
    """A conversation ends before prompt and answer exceed this."""


class Workload(Value):
    """When requests arrive, how long they are, for how long, and the seed."""

    arrivals: Arrivals
    prompt_tokens: Lengths | None = None
    """None: those of the replayed trace."""
    output_tokens: Lengths | None = None
    duration_s: float = Field(60.0, gt=0)
    warmup_s: float = Field(0.0, ge=0)
    """Requests scheduled before this are sent but not counted."""
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_is_left(self) -> Workload:
        if self.warmup_s >= self.duration_s:
            raise ValueError(f"warmup_s(={self.warmup_s}) must be < duration_s(={self.duration_s})")
        if isinstance(self.arrivals, Replay):
            if self.sessions is not None:
                raise ValueError("sessions must be None where a trace is replayed")
        else:
            for name in ("prompt_tokens", "output_tokens"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}(=None) must be given unless a trace is replayed")
        return self

    @classmethod
    def of_trace(cls, replay: Replay, **chosen: Any) -> Self:
        """A replay for as long as its window lasts."""
        trace = replay.trace(chosen.get("seed", 0))
        last_s = float(trace.arrived_at_s[-1])
        window_s = (replay.length_s or 0.0) / replay.speedup
        duration_s = max(window_s, last_s + _LONGER_S)
        return cls.model_validate({"arrivals": replay, "duration_s": duration_s, **chosen})

    def schedule(self) -> Schedule:
        """Draw the requests."""
        seeds = np.random.SeedSequence(self.seed).spawn(5)
        streams = [np.random.default_rng(seed) for seed in seeds]
        trace = None
        if isinstance(self.arrivals, Replay):
            trace = self.arrivals.trace(self.seed)
            trace = trace.take(np.flatnonzero(trace.arrived_at_s < self.duration_s))
            times = trace.arrived_at_s
        else:
            times = self.arrivals.times(self.duration_s, streams[0])
        if self.sessions is not None:
            drawn = _conversations(self, self.sessions, times, streams)
        else:
            prompt, output = self._lengths(len(times), trace, streams, seeds[1])
            own = trace.segments() if trace is not None and self.prompt_tokens is None else None
            drawn = Schedule(times, prompt, output, segments=own)
        if self.shared_prefix is None:
            return drawn
        return _prefixed(drawn, self.shared_prefix, streams[3])

    def _lengths(
        self,
        n: int,
        trace: Trace | None,
        streams: list[np.random.Generator],
        prompt_seed: np.random.SeedSequence,
    ) -> tuple[IntArray, IntArray]:
        laws = (self.prompt_tokens, self.output_tokens)
        if (
            isinstance(laws[0], Recorded)
            and isinstance(laws[1], Recorded)
            and laws[0].path == laws[1].path
        ):
            # The same stream draws the same rows.
            streams[2] = np.random.default_rng(prompt_seed)
        recorded = (trace.prompt_tokens, trace.output_tokens) if trace is not None else (None, None)
        drawn = [
            known if law is None else law.draw(n, stream)
            for law, known, stream in zip(laws, recorded, streams[1:3], strict=True)
        ]
        assert drawn[0] is not None
        assert drawn[1] is not None
        return drawn[0], drawn[1]

    def at(self, **changes: Any) -> Workload:
        """A copy with some fields changed, validated; the lengths of a trace stay, if it goes."""
        known = self.model_dump()
        if isinstance(self.arrivals, Replay) and "arrivals" in changes:
            known |= {
                name: law.model_dump()
                for name, law in zip(("prompt_tokens", "output_tokens"), self.laws(), strict=True)
            }
        return Workload.model_validate(known | changes)

    def laws(self) -> tuple[Lengths, Lengths]:
        """The laws of prompt (without what is shared) and output lengths, also of a trace."""
        prompt, output, replay = self.prompt_tokens, self.output_tokens, self.arrivals
        if isinstance(replay, Replay):
            divisor = replay.length_divisor
            prompt = prompt or Recorded(
                path=replay.path,
                field="prompt",
                length_divisor=divisor,
                max_tokens=replay.max_prompt_tokens,
            )
            output = output or Recorded(
                path=replay.path,
                field="output",
                length_divisor=divisor,
                max_tokens=replay.max_output_tokens,
            )
        assert prompt is not None
        assert output is not None
        return prompt, output


def _prefixed(drawn: Schedule, shared: SharedPrefix, rng: np.random.Generator) -> Schedule:
    """Every prompt (every first turn, and so all that follow it) begins with a shared prefix."""
    n = len(drawn)
    weights = np.arange(1, shared.groups + 1, dtype=np.float64) ** -shared.zipf
    lengths = shared.tokens.draw(shared.groups, rng)
    group = rng.choice(shared.groups, n, p=weights / weights.sum())
    if drawn.after is not None:  # a conversation keeps its prefix
        for i in np.flatnonzero(drawn.after >= 0):
            group[i] = group[drawn.after[i]]
    own: Segments = drawn.segments or tuple(
        ((i, int(tokens)),) for i, tokens in enumerate(drawn.prompt_tokens)
    )
    # Groups take the first ids.
    moved = tuple(
        (
            (int(group[i]), int(lengths[group[i]])),
            *((s if s < 0 else s + shared.groups, tokens) for s, tokens in own[i]),
        )
        for i in range(n)
    )
    return replace(drawn, prompt_tokens=drawn.prompt_tokens + lengths[group], segments=moved)


def _conversations(
    workload: Workload,
    sessions: Sessions,
    starts_s: FloatArray,
    streams: list[np.random.Generator],
) -> Schedule:
    """All turns of all conversations, in order of their estimated arrival."""
    assert workload.prompt_tokens is not None
    assert workload.output_tokens is not None
    turns = sessions.turns.draw(len(starts_s), streams[4])
    n = int(turns.sum())
    said = workload.prompt_tokens.draw(n, streams[1])
    output = workload.output_tokens.draw(n, streams[2])
    think_s = streams[4].exponential(sessions.think_s, n)
    rows: list[tuple[float, int, int, float]] = []  # arrival, row of the turn before, row, think
    segments: list[tuple[tuple[int, int], ...]] = []
    row = 0
    for start_s, count in zip(starts_s, turns, strict=True):
        history: tuple[tuple[int, int], ...] = ()
        at_s, before = float(start_s), -1
        for turn in range(row, row + int(count)):
            prompt = (*history, (turn, int(said[turn])))
            length = sum(tokens for _, tokens in prompt) + int(output[turn])
            limit = sessions.max_context_tokens
            if limit is not None and length > limit and before >= 0:
                break
            rows.append((at_s, before, turn, float(think_s[turn]) if before >= 0 else 0.0))
            segments.append(prompt)
            history, before = (*prompt, (-1 - turn, int(output[turn]))), turn
            at_s += float(think_s[min(turn + 1, n - 1)])
        row += int(count)
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], i))
    position = {rows[i][2]: k for k, i in enumerate(order)}

    def moved(prompt: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        return tuple((s if s >= 0 else -1 - position[-1 - s], tokens) for s, tokens in prompt)

    chosen = np.array([rows[i][2] for i in order], dtype=np.int64)
    kept = tuple(moved(segments[i]) for i in order)
    return Schedule(
        np.array([rows[i][0] for i in order], dtype=np.float64),
        np.array([sum(tokens for _, tokens in prompt) for prompt in kept], dtype=np.int64),
        output[chosen],
        segments=kept,
        after=np.array([position.get(rows[i][1], -1) for i in order], dtype=np.int64),
        think_s=np.array([rows[i][3] for i in order], dtype=np.float64),
    )
