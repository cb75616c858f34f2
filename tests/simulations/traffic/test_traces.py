"""Recorded traffic from its original files: excerpts and whole traces that lie beside the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.errors import InputError
from simulations.traffic import Segments, Trace, read_trace

SHARED = Path(__file__).parents[4] / "shared" / "traces"
needs_traces = pytest.mark.skipif(
    not SHARED.exists(), reason="the public traces are not beside the project"
)


@needs_traces
@pytest.mark.parametrize(
    ("name", "rows", "first", "span_s"),
    [
        ("AzureLLMInferenceTrace_code.head2000.csv", 2000, (4808, 10), None),
        ("azure2024_code_1week.RECONSTRUCTED_10rows.csv", 10, (2162, 5), 604_800),
        ("azure2025_multimodal.RECONSTRUCTED_10rows.csv", 10, (770, 491), 604_800),
        ("burstgpt_v1.QUOTED_3rows.csv", 3, (472, 18), 113),
        ("burstgpt_v3.QUOTED_3rows.csv", 3, (906, 446), 82),
        ("mooncake_conversation_trace.head2000.jsonl", 2000, (6758, 500), None),
        ("mooncake_synthetic_trace.head2000.jsonl", 2000, (40160, 6), None),
        ("vidur_splitwise_code.head2000.csv", 2000, (4808, 10), None),
    ],
)
def test_every_original_format_is_read(
    name: str, rows: int, first: tuple[int, int], span_s: float | None
) -> None:
    trace = read_trace(SHARED / "excerpts" / name)
    assert len(trace) == rows
    assert (trace.prompt_tokens[0], trace.output_tokens[0]) == first
    assert trace.arrived_at_s[0] == 0
    assert (np.diff(trace.arrived_at_s) >= 0).all()
    if span_s is not None:
        assert trace.arrived_at_s[-1] == pytest.approx(span_s, rel=0.001)


@needs_traces
def test_the_same_trace_in_two_formats_is_the_same() -> None:
    """vidur's splitwise_code.csv is Azure's of 2023, with stamps counted from its first request."""
    azure = read_trace(SHARED / "excerpts" / "AzureLLMInferenceTrace_code.head2000.csv")
    vidur = read_trace(SHARED / "excerpts" / "vidur_splitwise_code.head2000.csv")
    np.testing.assert_allclose(azure.arrived_at_s, vidur.arrived_at_s, atol=1e-5)
    np.testing.assert_array_equal(azure.prompt_tokens, vidur.prompt_tokens)


@needs_traces
@pytest.mark.parametrize(
    ("name", "rows", "prompt", "output", "rps"),
    [
        ("azure2023_code", 8_819, 2_048, 28, 2.57),
        ("mooncake_conversation", 12_031, 12_035, 343, 3.4),
        ("mooncake_synthetic", 3_993, 15_325, 149, 3.91),
        ("lmsys_vtc_600s", 1_500, 136, 256, 2.5),
    ],
)
def test_whole_traces_have_the_published_statistics(
    name: str, rows: int, prompt: float, output: float, rps: float
) -> None:
    trace = read_trace(SHARED / "traces" / f"{name}.parquet")
    assert len(trace) == rows
    assert trace.prompt_tokens.mean() == pytest.approx(prompt, abs=0.6)
    assert trace.output_tokens.mean() == pytest.approx(output, abs=0.6)
    assert len(trace) / trace.arrived_at_s[-1] == pytest.approx(rps, abs=0.006)


@needs_traces
def test_segments_share_as_much_as_the_blocks_of_the_trace() -> None:
    """37.4 % of the prompt tokens of Mooncake's conversations begin like an earlier prompt."""
    trace = read_trace(SHARED / "traces" / "mooncake_conversation.parquet")
    segments = trace.segments()
    assert segments is not None
    assert [sum(t for _, t in prompt) for prompt in segments] == trace.prompt_tokens.tolist()
    seen: set[int] = set()
    reused = 0
    for prompt in segments:
        for block, tokens in prompt:
            if block not in seen:
                break
            reused += tokens
        seen.update(block for block, _ in prompt)
    assert reused / trace.prompt_tokens.sum() == pytest.approx(0.374, abs=0.0005)


@needs_traces
def test_spread_over_its_ticks_mooncake_is_practically_poisson() -> None:
    """On its clock of 3 s the gaps have a CV of 3.0, which is the clock's; spread it is 1.01."""
    trace = read_trace(SHARED / "traces" / "mooncake_conversation.parquet")
    gaps = np.diff(trace.arrived_at_s)
    spread = trace.spread(np.random.default_rng(0))
    fine = np.diff(spread.arrived_at_s)
    assert gaps.std() / gaps.mean() == pytest.approx(3.03, abs=0.01)
    assert fine.std() / fine.mean() == pytest.approx(1.01, abs=0.03)
    assert (fine >= 0).all()
    # Nobody leaves his tick.
    moved = spread.arrived_at_s - trace.arrived_at_s
    assert (moved >= 0).all()
    assert moved.max() < np.diff(np.unique(trace.arrived_at_s)).max()
    np.testing.assert_array_equal(spread.output_tokens, trace.output_tokens)


@needs_traces
def test_servegen_is_drawn_at_its_published_rate() -> None:
    path = SHARED / "excerpts" / "servegen_deepseek-r1_chunk-57-trace.csv"
    expected = sum(600 * float(line.split(",")[1]) for line in path.read_text().split())
    # Gaps have a CV of 4 or so: counts scatter with a standard deviation of 4 sqrt(n).
    drawn = [len(read_trace(path, seed=seed)) for seed in range(40)]
    assert np.mean(drawn) == pytest.approx(expected, abs=3 * 4 * np.sqrt(expected / 40))
    assert len(set(drawn)) > 1
    again = read_trace(path, seed=3)
    assert len(again) == drawn[3]
    # Prompt and output are independent.
    rank = np.corrcoef(
        np.argsort(np.argsort(again.prompt_tokens)), np.argsort(np.argsort(again.output_tokens))
    )
    assert abs(rank[0, 1]) < 4 / np.sqrt(len(again))


@needs_traces
def test_a_servegen_client_without_lengths_says_which_file_is_missing() -> None:
    with pytest.raises(InputError, match=r"servegen_m-large_chunk-0-dataset\.json is missing"):
        read_trace(SHARED / "excerpts" / "servegen_m-large_chunk-0-trace.head2000.csv")


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n", "\n\n", 2),
    ],
)
def test_line_ends_and_blank_lines_change_nothing(
    tmp_path: Path, spell: Callable[[str], str]
) -> None:
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    csv = f"{head}2024-05-10 00:00:00+00:00,7,5\n2024-05-10 00:00:01.5+00:00,8,0\n"
    lines = "".join(
        f'{{"timestamp": {at}, "input_length": {prompt}, "output_length": {output}}}\n'
        for at, prompt, output in ((0, 7, 5), (1500, 8, 0))
    )
    for name, text in (("a.csv", csv), ("m.jsonl", lines)):
        trace = read_trace(written(tmp_path, name, spell(text)))
        assert trace.arrived_at_s.tolist() == [0, 1.5]
        assert trace.prompt_tokens.tolist() == [7, 8]
        assert trace.output_tokens.tolist() == [5, 1]  # nothing cannot be asked of a server


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10,7,5\nnoon,8,1\n",
            r"line 3: TIMESTAMP\(='noon'\)",
        ),
        (
            "b.csv",
            "Timestamp,Request tokens,Response tokens\n\n5,7,x\n",
            r"line 3: Response tokens\(='x'\)",
        ),
        (
            "v.csv",
            "arrived_at,num_prefill_tokens,num_decode_tokens\n0,-3,5\n",
            r"line 2: num_prefill_tokens\(='-3'\)",
        ),
        (
            "m.jsonl",
            '{"timestamp": 0, "input_length": 7, "output_length": 5}\n{"timestamp": 1}\n',
            "line 2: .*KeyError",
        ),
        ("x.txt", "hello\n", "is no trace that is known"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_trace(written(tmp_path, name, text))


def test_no_file_and_another_file_than_chosen(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_trace(tmp_path / "nothing.csv")
    path = written(tmp_path, "v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0,3,5\n")
    with pytest.raises(InputError, match="another file than the one that was chosen"):
        read_trace(path, sha256="0" * 64)
    with pytest.raises(InputError, match=r"format\(='azur'\) is not known"):
        read_trace(path, "azur")


def test_a_window_begins_at_its_begin_and_an_empty_one_is_refused() -> None:
    trace = Trace(np.array([0.0, 5.0, 9.0, 20.0]), np.full(4, 8), np.full(4, 2))
    assert trace.window(4, 10).arrived_at_s.tolist() == [1, 5]
    with pytest.raises(InputError, match="is empty"):
        trace.window(30, None)


def test_divided_lengths_keep_what_is_shared() -> None:
    blocks = (np.array([0, 1, 2]), np.array([0, 1, 3]))
    trace = Trace(np.arange(2.0), np.array([1300, 1100]), np.array([9, 1]), blocks, 512)
    short = trace.played(1.0, 8, None, 1)
    assert short.prompt_tokens.tolist() == [163, 138]
    assert short.output_tokens.tolist() == [1, 1]
    wanted = (((0, 64), (1, 64), (2, 35)), ((0, 64), (1, 64), (3, 10)))
    assert short.segments() == Segments.of(wanted)
    assert trace.played(4.0, 1, None, None).arrived_at_s.tolist() == [0, 0.25]
