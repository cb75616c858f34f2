"""A recorded trace, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InputError
from simulations.traffic.segments import IntArray, Segments

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """Recorded requests, sorted by arrival (those of one time stamp as in the file).

    Attributes:
        arrived_at_s: (n,), from the first request.
        prompt_tokens, output_tokens: (n,), at least 1.
        blocks: per request the ids of its prompt's blocks, chained: equal ids are equal prefixes.
        block_tokens: tokens of a whole block; the last of a prompt may be partial.
    """

    arrived_at_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    blocks: tuple[IntArray, ...] | None = None
    block_tokens: int = 0

    def __len__(self) -> int:
        return len(self.arrived_at_s)

    def take(self, chosen: npt.NDArray[Any]) -> Trace:
        """Some of the requests."""
        return replace(
            self,
            arrived_at_s=self.arrived_at_s[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            blocks=None if self.blocks is None else tuple(self.blocks[i] for i in chosen),
        )

    def spread(self, rng: np.random.Generator) -> Trace:
        """Requests of one time stamp uniformly up to the next; the last as far as the median tick."""
        ticks, tick = np.unique(self.arrived_at_s, return_inverse=True)
        if len(ticks) < 2:
            return self
        width = np.append(np.diff(ticks), np.median(np.diff(ticks)))
        offsets = rng.random(len(self))
        # Sorted within each tick, so that the order of the file is kept.
        offsets = offsets[np.lexsort((offsets, tick))]
        at_s = ticks[tick] + offsets * width[tick]
        return replace(self, arrived_at_s=at_s)

    def kept(self, share: float, rng: np.random.Generator, window_s: float = 600.0) -> Trace:
        """A share of the requests that is as bursty as all of them, at rates that follow theirs.

        Of each window a piece at a random place is stretched to the whole window: scaling time keeps
        the law of the gaps, and prompts of one burst stay together. Chosen one by one they would be
        smoother (see `renewals`). What prompts of different windows share is kept less often.

        Raises:  InputError: nothing is left.
        """
        number = (self.arrived_at_s // window_s).astype(np.int64)
        width_s = np.full(int(number[-1]) + 1, window_s)
        width_s[-1] = self.arrived_at_s[-1] - number[-1] * window_s
        begin_s = rng.random(len(width_s)) * (1 - share) * width_s
        within_s = self.arrived_at_s - number * window_s - begin_s[number]
        inside = np.flatnonzero((within_s >= 0) & (within_s < share * width_s[number]))
        if not len(inside):
            raise InputError(
                f"a share(={share:g}) of the trace keeps none of its {len(self)} requests",
                remedy="Keep more of it.",
            )
        stretched = (number * window_s + within_s / share)[inside]
        return replace(self.take(inside), arrived_at_s=stretched)

    def window(self, start_s: float, length_s: float | None) -> Trace:
        """The requests of a window, times from its begin.

        Raises:  InputError: nobody arrives in it.
        """
        end_s = np.inf if length_s is None else start_s + length_s
        inside = np.flatnonzero((self.arrived_at_s >= start_s) & (self.arrived_at_s < end_s))
        if not len(inside):
            raise InputError(
                f"the window start_s(={start_s:g}), length_s(={length_s}) of the trace is empty",
                remedy=f"The trace is {self.arrived_at_s[-1]:.0f} s long.",
            )
        chosen = self.take(inside)
        return replace(chosen, arrived_at_s=chosen.arrived_at_s - start_s)

    def played(
        self,
        speedup: float,
        length_divisor: float,
        max_prompt_tokens: int | None,
        max_output_tokens: int | None,
    ) -> Trace:
        """Faster, and with shorter prompts and outputs (divided, rounded up, then cut)."""
        prompt = np.ceil(self.prompt_tokens / length_divisor).astype(np.int64)
        output = np.ceil(self.output_tokens / length_divisor).astype(np.int64)
        return replace(
            self,
            arrived_at_s=self.arrived_at_s / speedup,
            prompt_tokens=prompt
            if max_prompt_tokens is None
            else prompt.clip(max=max_prompt_tokens),
            output_tokens=output
            if max_output_tokens is None
            else output.clip(max=max_output_tokens),
            block_tokens=int(np.ceil(self.block_tokens / length_divisor)),
        )

    def segments(self) -> Segments | None:
        """The blocks of all prompts, see `Segments`; None where no blocks are known."""
        if self.blocks is None:
            return None
        size = self.block_tokens
        whole = -(-self.prompt_tokens // size)
        counts = np.minimum([len(blocks) for blocks in self.blocks], whole)
        ids = np.concatenate(
            [blocks[:count] for blocks, count in zip(self.blocks, counts, strict=True)]
        )
        first = np.concatenate([[0], np.cumsum(counts)])
        tokens = np.full(len(ids), size, dtype=np.int32)
        tokens[first[1:] - 1] = self.prompt_tokens - (counts - 1) * size
        return Segments(first, ids, tokens)
