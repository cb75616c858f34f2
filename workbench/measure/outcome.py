"""One request and what came of it: plain values that the load client knows without pandas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan


@dataclass(frozen=True)
class Request:
    """One request to send: when, with which prompt, for how many tokens.

    A later turn of a conversation follows the answer of an earlier one: it is sent `think_s` after
    that answer ended, whatever `scheduled_s` says, and its prompt holds that answer.

    Attributes:
        after: position, in the list of requests, of the turn before; None for a first turn.
        answers: (start in the prompt, position of the request) of each earlier answer: the ids that
            stand there are replaced by those that came back.
    """

    scheduled_s: float
    prompt_token_ids: Sequence[int]
    output_tokens: int
    after: int | None = None
    think_s: float = 0.0
    answers: tuple[tuple[int, int], ...] = ()


@dataclass
class Outcome:
    """What came of one request. Times in seconds since the start of the run, NaN if never."""

    request_id: int
    scheduled_s: float
    prompt_tokens: int
    asked_output_tokens: int
    sent_s: float = nan
    first_token_s: float = nan
    end_s: float = nan
    output_tokens: int = 0
    error: str | None = None
    itl_s: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, request_id: int, request: Request) -> Outcome:
        """The outcome of a request that has not been sent yet."""
        return cls(
            request_id=request_id,
            scheduled_s=request.scheduled_s,
            prompt_tokens=len(request.prompt_token_ids),
            asked_output_tokens=request.output_tokens,
        )

    def chunk(self, now_s: float, tokens: int = 0) -> None:
        """Content arrived; `end_s` follows the last chunk, as in `vllm bench serve`."""
        if self.first_token_s != self.first_token_s:
            self.first_token_s = now_s
        else:
            self.itl_s.append(now_s - self.end_s)
        self.end_s = now_s
        self.output_tokens += tokens
