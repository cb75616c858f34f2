"""Flat prompts: what they share, against a plain search; and whether the engine finds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.plan import EngineArgs
from simulations.engine import simulate_replica
from simulations.engine.reference import token_ids
from simulations.traffic import Replay, Schedule, Segments, Workload
from simulations.traffic.segments import Prompt, shared_tokens
from tests.simulations.models import latency

SHARED = Path(__file__).parents[4] / "shared" / "traces"
needs_traces = pytest.mark.skipif(
    not SHARED.exists(), reason="the public traces are not beside the project"
)
PROMPTS = st.lists(
    st.lists(st.tuples(st.integers(-4, 3), st.integers(1, 5)), min_size=1, max_size=5),
    min_size=1,
    max_size=9,
)


def searched(prompts: list[Prompt], output_tokens: list[int]) -> list[int]:
    """The same by comparing every request with every other."""
    paths = [
        [*prompt, (-1 - i, tokens)]
        for i, (prompt, tokens) in enumerate(zip(prompts, output_tokens, strict=True))
    ]
    found = []
    for i, mine in enumerate(paths):
        best = 0
        for j, other in enumerate(paths):
            alike = 0
            for (a, _), (b, _) in zip(mine, other, strict=False):
                if a != b:
                    break
                alike += 1
            best = max(best, alike if i != j else 0)
        found.append(sum(tokens for _, tokens in mine[:best]))
    return found


@settings(max_examples=300, deadline=None)
@given(PROMPTS, st.data())
def test_what_prompts_share_is_what_a_search_finds(
    prompts: list[Prompt], data: st.DataObject
) -> None:
    tokens = st.lists(st.integers(1, 5), min_size=len(prompts), max_size=len(prompts))
    output = data.draw(tokens)
    flat = Segments.of(prompts)
    assert shared_tokens(flat, np.array(output)).tolist() == searched(prompts, output)


@settings(max_examples=100, deadline=None)
@given(PROMPTS, st.data())
def test_flat_prompts_are_the_prompts(prompts: list[Prompt], data: st.DataObject) -> None:
    flat = Segments.of(prompts)
    rows = [tuple(prompt) for prompt in prompts]
    assert list(flat) == rows
    assert flat[-1] == rows[-1]
    assert flat[1:] == rows[1:]
    assert flat.lengths().tolist() == [sum(t for _, t in prompt) for prompt in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    taken = flat.take(np.array(chosen, dtype=np.int64))
    assert list(taken) == [rows[i] for i in chosen]
    behind = flat.after(np.arange(len(rows)), np.full(len(rows), 7), moved=10)
    assert list(behind) == [
        ((i, 7), *((s if s < 0 else s + 10, t) for s, t in prompt)) for i, prompt in enumerate(rows)
    ]
    assert flat == Segments.of(rows)
    assert (flat == behind) is False


@needs_traces
@pytest.mark.parametrize("divisor", [8.0, 5.0], ids=["64 tokens a block", "103 tokens a block"])
def test_blocks_of_512_are_found_by_an_engine_with_blocks_of_16(divisor: float) -> None:
    """Prompts of Mooncake: what is cached is the longest beginning that was there before, in
    whole blocks of the engine, and never the last token, whether 16 divides the trace's block or not."""
    path = SHARED / "excerpts" / "mooncake_conversation_trace.head2000.jsonl"
    replay = Replay.of(path, length_divisor=divisor, max_output_tokens=1)
    drawn = Workload.of_trace(replay, duration_s=300.0).schedule()
    n = 400
    assert drawn.segments is not None
    assert len(drawn) > n
    # One after the other, so that all that came before is in the cache.
    apart = Schedule(
        np.arange(n) * 1_000.0,
        drawn.prompt_tokens[:n],
        drawn.output_tokens[:n],
        segments=drawn.segments.take(np.arange(n)),
    )
    engine = EngineArgs(max_model_len=40_000, enable_prefix_caching=True)
    found = simulate_replica(apart, latency(kv_blocks=200_000), engine)
    prompts = [np.array(token_ids(apart, i)[:-1]) for i in range(n)]
    expected = []
    for i, mine in enumerate(prompts):
        longest = 0
        for other in prompts[:i]:
            size = min(len(mine), len(other))
            differs = np.flatnonzero(mine[:size] != other[:size])
            longest = max(longest, int(differs[0]) if len(differs) else size)
        expected.append(min(longest, len(mine) - 1) // 16 * 16)
    assert found["cached_tokens"].tolist() == expected
    assert sum(expected) > 0.1 * apart.prompt_tokens.sum()
