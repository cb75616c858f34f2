"""The numbers of tokens for which vLLM captures CUDA graphs, and to which it rounds steps up."""

from __future__ import annotations

from collections.abc import Sequence

from serving.plan import EngineArgs
from workbench.measure import Measurement

_LARGEST = 512


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
