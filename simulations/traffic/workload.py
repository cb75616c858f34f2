"""A Workload: arrivals, lengths, what is shared between prompts, clients, and the seed that draws it.

Each source of randomness has a stream of its own, so that changing one leaves the others alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.special import ndtri

from simulations.traffic.arrivals import Arrivals, ClosedLoop
from simulations.traffic.clients import Clients, Priorities
from simulations.traffic.finite import Finite
from simulations.traffic.lengths import IntArray, Lengths, Recorded
from simulations.traffic.network import Network
from simulations.traffic.popularity import Questions, zipf_ranks
from simulations.traffic.renewals import FloatArray, Spike, sped_up
from simulations.traffic.replay import Replay
from simulations.traffic.schedule import Schedule, prefixed, single_turns, talks
from simulations.traffic.trace import Trace

_LONGER_S = 1e-6
_STREAMS = (
    *("arrivals", "prompt", "output", "prefix", "sessions"),
    *("questions", "correlation", "patience", "priorities", "network"),
)
"""In this order for ever: a new one goes to the end."""
_Streams = dict[str, np.random.Generator]


class SharedPrefix(Finite):
    """Some system prompts, one of which every prompt begins with, in addition to its own tokens."""

    tokens: Lengths
    groups: int = Field(1, ge=1)
    """How many different ones."""
    zipf: float = Field(0.0, ge=0)
    """Popularity of the k-th falls as k^-zipf; 0 makes all alike."""


class Sessions(Finite):
    """Conversations: each arrival is a first turn, and later turns follow the answers.

    The workload's prompt_tokens are what the user adds in each turn; the prompt is all that was said.
    """

    turns: Lengths
    think_s: float = Field(5.0, ge=0)
    """Mean pause between an answer and the next turn; exponentially distributed."""
    max_context_tokens: int | None = Field(None, ge=2)
    """A conversation ends before prompt and answer exceed this."""


class Workload(Finite):
    """When requests arrive, how long they are, for how long, and the seed."""

    arrivals: Arrivals
    prompt_tokens: Lengths | None = None
    """None: those of the replayed trace."""
    output_tokens: Lengths | None = None
    correlation: float | None = Field(None, gt=-1, lt=1)
    """Rank correlation of prompt and output (Spearman's); None: independent, or as they were recorded."""
    duration_s: float = Field(60.0, gt=0)
    warmup_s: float = Field(0.0, ge=0)
    """Requests scheduled before this are sent but not counted."""
    spikes: tuple[Spike, ...] = ()
    """Of a process its rate is multiplied; a trace is played faster for so long, then goes on."""
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    questions: Questions | None = None
    """Of sessions the first turns."""
    priorities: Priorities | None = None
    clients: Clients | None = None
    network: Network | None = None
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

    @model_validator(mode="after")
    def _fits_together(self) -> Workload:
        late = [spike.at_s for spike in self.spikes if spike.at_s >= self.duration_s]
        if late:
            raise ValueError(f"spikes(at_s={late[0]}) must begin before {self.duration_s} s")
        if self.spikes and isinstance(self.arrivals, ClosedLoop):
            raise ValueError("spikes must be empty in a closed loop: its rate follows the answers")
        if self.correlation is not None and (
            self.prompt_tokens is None or self.output_tokens is None or self._joint
        ):
            raise ValueError(
                f"correlation(={self.correlation}) must be None where lengths are recorded in pairs"
            )
        return self

    @classmethod
    def of_trace(cls, replay: Replay, **chosen: Any) -> Self:
        """A replay for as long as its window lasts."""
        trace = replay.trace(chosen.get("seed", 0))
        last_s = float(trace.arrived_at_s[-1])
        window_s = (replay.length_s or 0.0) / replay.speedup
        spikes = tuple(Spike.model_validate(spike) for spike in chosen.get("spikes", ()))
        played_s = sped_up(np.array([max(window_s, last_s + _LONGER_S)]), spikes)
        return cls.model_validate({"arrivals": replay, "duration_s": float(played_s[0]), **chosen})

    def schedule(self) -> Schedule:
        """Draw the requests.

        Raises:  InputError: a file that is not what it was, or more requests than can be numbered.
        """
        seeds = np.random.SeedSequence(self.seed).spawn(len(_STREAMS))
        rng = {
            name: np.random.default_rng(seed) for name, seed in zip(_STREAMS, seeds, strict=True)
        }
        if self._joint:  # the same stream draws the same rows
            rng["output"] = np.random.default_rng(seeds[_STREAMS.index("prompt")])
        trace = self._trace()
        if trace is not None:
            times = trace.arrived_at_s
        elif isinstance(self.arrivals, ClosedLoop):
            times = self.arrivals.times(self.duration_s, rng["arrivals"])
        else:
            assert not isinstance(self.arrivals, Replay)
            times = self.arrivals.times(self.duration_s, rng["arrivals"], self.spikes)
        drawn = self._requests(times, trace, rng)
        if self.shared_prefix is not None:
            shared = self.shared_prefix
            tokens = shared.tokens.draw(shared.groups, rng["prefix"])
            group = zipf_ranks(len(drawn), shared.groups, shared.zipf, rng["prefix"])
            drawn = prefixed(drawn, group, tokens)
        return self._behaviour(drawn, rng)

    def _trace(self) -> Trace | None:
        """What is replayed within the duration; None where nothing is."""
        if not isinstance(self.arrivals, Replay):
            return None
        trace = self.arrivals.trace(self.seed)
        trace = replace(trace, arrived_at_s=sped_up(trace.arrived_at_s, self.spikes))
        return trace.take(np.flatnonzero(trace.arrived_at_s < self.duration_s))

    def _requests(self, times: FloatArray, trace: Trace | None, rng: _Streams) -> Schedule:
        """Lengths and contents, without a shared prefix."""
        key = None
        if self.questions is not None:
            key = self.questions.draw(len(times), rng["questions"])
        if self.sessions is None:
            prompt, output = self._lengths(len(times), trace, rng)
            own = trace.segments() if trace is not None and self.prompt_tokens is None else None
            return single_turns(times, prompt, output, own, key)
        turns = self.sessions.turns.draw(len(times), rng["sessions"])
        said, output = self._lengths(int(turns.sum()), None, rng)
        return talks(
            times,
            turns,
            said,
            output,
            rng["sessions"].exponential(self.sessions.think_s, len(said)),
            max_context_tokens=self.sessions.max_context_tokens,
            key=key,
        )

    def _lengths(self, n: int, trace: Trace | None, rng: _Streams) -> tuple[IntArray, IntArray]:
        recorded = (trace.prompt_tokens, trace.output_tokens) if trace is not None else (None, None)
        drawn = [
            known if law is None else law.draw(n, rng[stream])
            for law, known, stream in zip(
                (self.prompt_tokens, self.output_tokens),
                recorded,
                ("prompt", "output"),
                strict=True,
            )
        ]
        prompt, output = drawn
        assert prompt is not None
        assert output is not None
        if self.correlation is None:
            return prompt, output
        return prompt, correlated(prompt, output, self.correlation, rng["correlation"])

    def _behaviour(self, drawn: Schedule, rng: _Streams) -> Schedule:
        """Who goes first, who leaves when, and how far away they are."""
        n = len(drawn)
        changes: dict[str, Any] = {"clients": self.clients}
        if self.priorities is not None:
            changes["priority"] = self.priorities.draw(n, rng["priorities"])[drawn.first_turns()]
        if self.clients is not None and self.clients.patience is not None:
            changes["patience_s"] = self.clients.patience.draw(n, rng["patience"])
        if self.network is not None:
            changes["network_s"] = self.network.round_trip.draw(n, rng["network"])
        return replace(drawn, **changes)

    @property
    def _joint(self) -> bool:
        """Whether prompt and output are drawn from one row of a trace."""
        prompt, output = self.prompt_tokens, self.output_tokens
        return (
            isinstance(prompt, Recorded)
            and isinstance(output, Recorded)
            and prompt.path == output.path
        )

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


def correlated(
    prompt: IntArray, output: IntArray, rank_correlation: float, rng: np.random.Generator
) -> IntArray:
    """The outputs in another order, so that their ranks go with those of the prompts.

    Both samples keep all their values, whatever their laws: a Gaussian copula by reordering, in which
    Spearman's rho is 6 / pi arcsin(r / 2) of the normal scores' correlation r. Many equal lengths give
    less, since their order is arbitrary.

    Source:  Iman and Conover, Communications in Statistics B 11 (1982); Kruskal, JASA 53 (1958).
    """
    n = len(prompt)
    of_scores = 2 * np.sin(np.pi * rank_correlation / 6)
    scores = np.empty(n)
    scores[np.argsort(prompt, kind="stable")] = ndtri((np.arange(n) + 0.5) / n)
    mixed = of_scores * scores + np.sqrt(1 - of_scores**2) * rng.standard_normal(n)
    reordered = np.empty_like(output)
    reordered[np.argsort(mixed)] = np.sort(output)
    return reordered
