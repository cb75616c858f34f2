"""CUDA graphs: the numbers of tokens that vLLM captures, and what launching the rest takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serving.plan import EngineArgs
from workbench.fit.steps import woken_prefills
from workbench.measure import Measurement

_LARGEST = 512
_LEAST = 5
"""Prefills that are needed to know what launching their kind takes."""


def captured_sizes(measurements: Sequence[Measurement]) -> tuple[int, ...]:
    """Sizes that the measured engine captured with default settings; () where it captured none."""
    first = measurements[0]
    if first.environment.gpu_count == 0 or any(m.engine.enforce_eager for m in measurements):
        return ()
    return sizes_up_to(first.engine)


def sizes_up_to(engine: EngineArgs) -> tuple[int, ...]:
    """Sizes that vLLM captures on a GPU by default.

    Source:  vLLM 0.26 to 0.33, `VllmConfig._set_cudagraph_sizes`: 1, 2, 4, steps of 8 below 256 and of
             16 from there, up to twice max_num_seqs and at most 512 (1024 on Blackwell).
    """
    largest = min(2 * engine.max_num_seqs, _LARGEST, engine.max_num_batched_tokens)
    sizes = (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16))
    return tuple(size for size in sizes if size <= largest)


def launches(measurements: Sequence[Measurement], sizes: tuple[int, ...]) -> tuple[float, float]:
    """How long the host takes to launch a step with a prefill, as an idle engine waits for it.

    The median of the half with fewer tokens: of the other half the GPU may take longer than the host.

    Args:    sizes: that were captured.
    Returns: seconds up to the largest of them and above, 0 where too few were seen; where none was
             captured the first is that of all.
    """
    tokens, step_s = woken_prefills(measurements)
    large = tokens > sizes[-1] if sizes else np.zeros(len(tokens), dtype=bool)
    found = []
    for kind in (~large, large):
        if kind.sum() < 2 * _LEAST:
            found.append(0.0)
            continue
        fewer = kind & (tokens <= np.median(tokens[kind]))
        found.append(float(np.median(step_s[fewer])))
    return found[0], found[1]
