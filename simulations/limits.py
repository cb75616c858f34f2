"""Where a fitted model may be used: refuse to extrapolate silently."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from serving.errors import ExtrapolationError
from serving.plan import EngineArgs
from simulations.latency import LatencyModel
from simulations.traffic import Workload

SEQS_BEYOND = 1.25
"""Batches larger than any seen meet other kernels, so little beyond is allowed."""
TOKENS_BEYOND = 2.0
"""Time grows linearly with tokens, so more is."""
_REMEDY = "Measure with larger batches or longer requests, or lower the engine's limit."


def fitted_max_num_seqs(latency: LatencyModel) -> int:
    """The largest max_num_seqs that may be simulated with this model."""
    return max(1, int(SEQS_BEYOND * latency.fitted_range.decode_seqs))


def check_range(
    latency: LatencyModel, engine: EngineArgs, workload: Workload, *, force: bool = False
) -> tuple[str, ...]:
    """Refuse an engine and a workload whose steps would lie far outside what was fitted.

    What is compared: max_num_seqs with the most sequences decoding together (1.25 times that is
    allowed), the longest prefill of one request, the longest prompt with the longest request, and
    the KV tokens of a full batch of requests of mean length (twice as many are).

    Args:    force: go on, and give the reasons as doubts of what is predicted.
    Returns: the doubts; none within the range.
    Raises:  ExtrapolationError: names the value and what was seen.
    """
    beyond = tuple(_beyond(latency, engine, workload))
    if beyond and not force:
        raise ExtrapolationError(beyond[0], remedy=_REMEDY)
    return beyond


def _beyond(latency: LatencyModel, engine: EngineArgs, workload: Workload) -> Iterator[str]:
    seen = latency.fitted_range
    if engine.max_num_seqs > fitted_max_num_seqs(latency):
        yield (
            f"max_num_seqs(={engine.max_num_seqs}) is beyond what {latency.variant} was fitted to:"
            f" at most {seen.decode_seqs} sequences decoded together"
        )
    prompts, outputs = workload.laws()
    longest = min(engine.max_num_batched_tokens, prompts.longest_tokens)
    if longest > TOKENS_BEYOND * seen.prefill_tokens:
        yield (
            f"a prefill of {longest} tokens is beyond what {latency.variant} was fitted to:"
            f" at most {seen.prefill_tokens} in one step"
        )
    if 0 < TOKENS_BEYOND * seen.context_tokens < prompts.longest_tokens:
        yield (
            f"a prompt of {prompts.longest_tokens} tokens is beyond what {latency.variant} was fitted"
            f" to: requests of at most {seen.context_tokens}"
        )
    rng = np.random.default_rng(0)
    prompt = float(prompts.draw(1000, rng).mean())
    output = float(outputs.draw(1000, rng).mean())
    kv_tokens = min(
        engine.max_num_seqs * (prompt + output / 2), latency.kv_blocks * latency.block_size_tokens
    )
    if kv_tokens > TOKENS_BEYOND * seen.kv_tokens:
        yield (
            f"a full batch of max_num_seqs(={engine.max_num_seqs}) holds {kv_tokens:.0f} KV tokens,"
            f" beyond what {latency.variant} was fitted to: at most {seen.kv_tokens}"
        )
