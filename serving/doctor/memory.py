"""Will it fit? Weights, KV cache and what a step needs, against the memory of a GPU.

vLLM takes gpu_memory_utilization of the device, loads the weights, runs the largest step once to see
what it needs besides, and gives the rest to the KV cache. It does not start where that rest holds no
request of max_model_len; where it holds fewer than max_num_seqs of them it starts, and preempts.

Source:  vllm 0.32: v1/worker/gpu_worker.py (determine_available_memory), v1/core/kv_cache_utils.py
"""

from __future__ import annotations

from typing import NamedTuple, Self

from serving.doctor.model import Shape, Weights
from serving.plan import EngineArgs

GIB = 2**30
CONTEXT_BYTES = GIB // 2
"""Assumed: kernels, the CUDA context and workspaces of libraries, buffers between GPUs too."""
GRAPHS_BYTES = GIB // 4
"""Assumed: CUDA graphs."""
_LOGITS_COPIES = 3
"""Assumed: 32-bit logits, their sorted copy and probabilities, while tokens are sampled."""


class Budget(NamedTuple):
    """Bytes on one GPU."""

    limit: int
    """What vLLM may take of it."""
    weights: int
    step: int
    """Activations, logits, CUDA graphs, context: by shape, not measured."""
    kv_per_token: int
    kv_room: int
    """What is left for the KV cache, at least 0."""
    over: int
    """What is missing before the first token is kept; 0 where nothing is."""
    held: int
    """Requests of full length that the KV cache holds at once."""

    @classmethod
    def of(cls, shape: Shape, weights: Weights, engine: EngineArgs, memory_bytes: int) -> Self:
        """The budget of one GPU of so much memory."""
        spread = engine.tensor_parallel_size
        share = -(-weights.served_bytes // spread)
        step = step_bytes(shape, engine)
        fixed = engine.kv_cache_memory_bytes
        # A fixed KV cache does not respect gpu_memory_utilization.
        limit = memory_bytes if fixed else int(memory_bytes * engine.gpu_memory_utilization)
        left = limit - share - step - (fixed or 0)
        per_token = shape.kv_bytes_per_token(engine)
        room = fixed if fixed else max(0, left)
        return cls(
            limit=limit,
            weights=share,
            step=step,
            kv_per_token=per_token,
            kv_room=room,
            over=max(0, -left),
            held=room // (per_token * engine.max_model_len),
        )

    def starts(self) -> bool:
        """Whether vLLM starts: one request of full length must fit."""
        return self.over == 0 and self.held >= 1


def step_bytes(shape: Shape, engine: EngineArgs) -> int:
    """What the largest step needs besides weights and KV cache, on one GPU.

    The widest point of a layer is its MLP: its input, both halves of the first product, and their
    product. Logits come after the last layer, when those are gone.
    """
    width, spread = shape.width_bytes(engine), engine.tensor_parallel_size
    activations = (
        engine.max_num_batched_tokens
        * width
        * (3 * shape.hidden + 3 * -(-shape.intermediate // spread))
    )
    logits = engine.max_num_seqs * shape.vocabulary * 4 * _LOGITS_COPIES
    graphs = 0 if engine.enforce_eager else GRAPHS_BYTES
    return max(activations, logits) + CONTEXT_BYTES + graphs
