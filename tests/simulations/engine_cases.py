"""Random workloads on random schedulers: what the engine's twins are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from simulations.engine import SchedulerOptions
from simulations.latency import LatencyModel
from simulations.traffic import Schedule, Segments
from tests.simulations.models import latency

LONGEST = 60


@dataclass(frozen=True)
class Case:
    """One run: a schedule, a clock and a scheduler."""

    schedule: Schedule
    latency: LatencyModel
    options: SchedulerOptions
    concurrency: int | None = None


FEATURES = frozenset(
    {"caching", "async", "priority", "cap", "limits", "aborts", "closed", "turns", "admission"}
)


@st.composite
def cases(draw: st.DrawFn, features: frozenset[str] = FEATURES, block_size: int = 0) -> Case:
    """A case with any of the features.

    Args:    block_size: 0 draws one.
    """
    tokens = st.integers(1, LONGEST)
    gaps_s = st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.3])
    rows = draw(st.lists(st.tuples(gaps_s, tokens, tokens), min_size=1, max_size=30))
    n = len(rows)
    gap_s, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    changes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    size = block_size or draw(st.sampled_from([1, 3, 16]))
    if "caching" in features and draw(st.booleans()):
        options["prefix_caching"] = True
        groups = draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))
        beginnings = draw(st.lists(tokens, min_size=3, max_size=3))
        segments = tuple(
            ((10 + i, int(prompt[i])),)
            if group < 0
            else ((group, beginnings[group]), (10 + i, int(prompt[i])))
            for i, group in enumerate(groups)
        )
        if "turns" in features and draw(st.booleans()):
            before = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
            segments, changes = _turns(segments, output, before)
        prompt = np.array([sum(length for _, length in pieces) for pieces in segments])
        changes["segments"] = Segments.of(segments)
    if "async" in features:
        options["async_scheduling"] = draw(st.booleans())
    if "priority" in features and draw(st.booleans()):
        options["priority"] = True
        changes["priority"] = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    if "cap" in features:
        options["long_prefill_tokens"] = draw(st.sampled_from([0, 1, 5, 20]))
    if "limits" in features and draw(st.booleans()):
        options["max_queued_requests"] = draw(st.integers(1, 12))
        options["max_queued_tokens"] = draw(st.integers(1, 5 * LONGEST))
    if "aborts" in features and draw(st.booleans()):
        patience_s = st.sampled_from([0.001, 0.02, 0.1, 0.5, np.inf])
        changes["patience_s"] = np.array(draw(st.lists(patience_s, min_size=n, max_size=n)))
    if "admission" in features:
        options["watermark_blocks"] = draw(st.sampled_from([0, 0, 2]))
        options["reserve_whole_prompt"] = draw(st.booleans())
    concurrency = None
    if "closed" in features and "after" not in changes and draw(st.booleans()):
        concurrency = draw(st.integers(1, 9))
        gap_s = np.zeros(n)
    longest = int((prompt + output).max())
    options["max_seqs"] = draw(st.integers(1, 10))
    options["max_step_tokens"] = draw(st.integers(options["max_seqs"], 150))
    if draw(st.booleans()) and draw(st.booleans()):
        options["max_step_tokens"] = max(longest, options["max_step_tokens"])
        options["chunked_prefill"] = False
    spare = draw(st.sampled_from([0, longest // 2, 2 * longest, 5000]))
    model = latency(
        base_s=0.004,
        floor_s=0.001,
        per_token_s=1e-4,
        per_kv_token_s=1e-5,
        per_prefill_attention_s=1e-7,
        prefill_step_s=draw(st.sampled_from([0.0, 0.002])),
        prefill_launch_s=draw(st.sampled_from([0.0, 0.008])),
        uncaptured_launch_s=draw(st.sampled_from([0.0, 0.013])),
        captured_tokens=draw(st.sampled_from([0, 4, 32])),
        request_overhead_s=draw(st.sampled_from([0.0, 0.003])),
        response_overhead_s=draw(st.sampled_from([0.0, 0.001])),
        response_per_seq_s=draw(st.sampled_from([0.0, 0.0001])),
        block_size_tokens=size,
        kv_blocks=3 + (longest + spare) // size,
    )
    return Case(
        Schedule(np.cumsum(gap_s), prompt, output, **changes),
        model,
        SchedulerOptions(block_size=size, **options),
        concurrency,
    )


def _turns(
    segments: tuple[tuple[tuple[int, int], ...], ...], output: Any, before: list[int]
) -> tuple[tuple[tuple[tuple[int, int], ...], ...], dict[str, Any]]:
    """Some requests become later turns: of the request `before` places earlier, where it is free."""
    n = len(segments)
    after = np.full(n, -1, dtype=np.int64)
    kept = list(segments)
    for i in range(n):
        j = i - before[i]
        if j == i or j < 0 or j in after:
            continue
        said = (*kept[j], (-1 - j, int(output[j])), (10 + i, segments[i][-1][1]))
        if sum(length for _, length in said) <= 4 * LONGEST:
            after[i] = j
            kept[i] = said
    return tuple(kept), {"after": after, "think_s": np.full(n, 0.01)}
