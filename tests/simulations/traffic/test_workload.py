"""What is drawn: rates, lengths, shared prefixes and conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from simulations.predict import predict
from simulations.traffic import (
    Empirical,
    Fixed,
    LogNormal,
    Poisson,
    Ramp,
    Recorded,
    Replay,
    Sessions,
    SharedPrefix,
    Uniform,
    Workload,
)
from tests.simulations.models import latency, plan

ROWS = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(
    f"{at},{10 + i % 3},{20 + i % 3}\n" for i, at in enumerate((0, 1, 1, 2, 4, 7, 9, 12))
)


def workload(**changes: Any) -> Workload:
    chosen: dict[str, Any] = {
        "arrivals": Poisson(rate_rps=5),
        "prompt_tokens": Uniform(min_tokens=4, max_tokens=20),
        "output_tokens": Uniform(min_tokens=2, max_tokens=9),
        "duration_s": 40.0,
        **changes,
    }
    return Workload.model_validate(chosen)


def replay(tmp_path: Path, **chosen: Any) -> Replay:
    path = tmp_path / "trace.csv"
    path.write_text(ROWS)
    return Replay.of(path, **chosen)


def test_a_ramp_sends_the_integral_of_its_rate() -> None:
    """From 0 to 20 requests a second in 100 s: 1,000 in all, a quarter of them in the first half."""
    load = workload(arrivals=Ramp(start_rps=0, end_rps=20), duration_s=100.0)
    drawn = [load.at(seed=seed).schedule().arrived_at_s for seed in range(40)]
    total = np.array([len(at_s) for at_s in drawn])
    first = np.array([(at_s < 50).sum() for at_s in drawn])
    assert total.mean() == pytest.approx(1000, abs=4 * np.sqrt(1000 / 40))
    assert first.mean() == pytest.approx(250, abs=4 * np.sqrt(250 / 40))
    falling = workload(arrivals=Ramp(start_rps=20, end_rps=0), duration_s=100.0).schedule()
    assert (falling.arrived_at_s < 50).mean() == pytest.approx(0.75, abs=0.06)


def test_empirical_lengths_come_in_their_shares() -> None:
    law = Empirical(tokens=(3, 50), weights=(1, 3))
    drawn = law.draw(20_000, np.random.default_rng(0))
    assert set(drawn) == {3, 50}
    assert (drawn == 50).mean() == pytest.approx(0.75, abs=0.015)
    assert law.longest_tokens == 50


def test_recorded_lengths_of_one_trace_come_from_one_row(tmp_path: Path) -> None:
    path = replay(tmp_path).path
    both = workload(
        prompt_tokens=Recorded(path=path, field="prompt"),
        output_tokens=Recorded(path=path, field="output"),
        duration_s=400.0,
    ).schedule()
    assert (both.output_tokens - both.prompt_tokens == 10).all()
    assert set(both.prompt_tokens) == {10, 11, 12}


def test_a_replay_keeps_times_and_lengths(tmp_path: Path) -> None:
    played = Workload.of_trace(replay(tmp_path))
    drawn = played.schedule()
    assert drawn.arrived_at_s.tolist() == [0, 1, 1, 2, 4, 7, 9, 12]
    assert drawn.prompt_tokens.tolist() == [10, 11, 12, 10, 11, 12, 10, 11]
    assert played.duration_s == pytest.approx(12, abs=0.001)


def test_speed_up_and_window_of_a_replay(tmp_path: Path) -> None:
    fast = Workload.of_trace(replay(tmp_path, speedup=2, start_s=1, length_s=8))
    assert fast.schedule().arrived_at_s.tolist() == [0, 0, 0.5, 1.5, 3]
    assert fast.duration_s == 4
    cut = fast.at(duration_s=1.0)
    assert cut.schedule().arrived_at_s.tolist() == [0, 0, 0.5]


def test_lengths_given_replace_those_of_the_trace(tmp_path: Path) -> None:
    drawn = Workload.of_trace(replay(tmp_path), output_tokens=Fixed(tokens=3)).schedule()
    assert set(drawn.output_tokens) == {3}
    assert drawn.prompt_tokens[0] == 10


def test_another_rate_keeps_the_lengths_of_the_trace(tmp_path: Path) -> None:
    played = Workload.of_trace(replay(tmp_path, length_divisor=2, max_output_tokens=10))
    drawn = played.at(arrivals=Poisson(rate_rps=50)).schedule()
    assert set(drawn.prompt_tokens) == {5, 6}
    assert set(drawn.output_tokens) == {10}


def test_a_replay_names_its_data_exactly(tmp_path: Path) -> None:
    chosen = Workload.of_trace(replay(tmp_path))
    again = Workload.model_validate_json(chosen.model_dump_json())
    assert again == chosen
    (tmp_path / "trace.csv").write_text(ROWS + "13,1,1\n")
    with pytest.raises(InputError, match="another file than the one that was chosen"):
        again.schedule()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_tokens": None}, "prompt_tokens"),
        ({"arrivals": {"kind": "ramp", "start_rps": 0, "end_rps": 0}}, "must not both be 0"),
        ({"output_tokens": {"kind": "uniform", "min_tokens": 5, "max_tokens": 4}}, "must be <="),
        ({"output_tokens": {"kind": "empirical", "tokens": (1, 2), "weights": (1,)}}, "as many as"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        workload(**changes)


def test_sessions_have_no_place_in_a_replay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sessions must be None"):
        Workload.of_trace(replay(tmp_path), sessions=Sessions(turns=Fixed(tokens=2)))


def test_what_is_added_leaves_the_rest_as_it_was() -> None:
    plain = workload().schedule()
    prefixed = workload(shared_prefix=SharedPrefix(tokens=Fixed(tokens=100), groups=3)).schedule()
    np.testing.assert_array_equal(plain.arrived_at_s, prefixed.arrived_at_s)
    np.testing.assert_array_equal(plain.output_tokens, prefixed.output_tokens)
    np.testing.assert_array_equal(plain.prompt_tokens + 100, prefixed.prompt_tokens)


def test_prefixes_are_as_popular_as_zipf_says() -> None:
    shared = SharedPrefix(tokens=Fixed(tokens=10), groups=4, zipf=1.0)
    drawn = workload(shared_prefix=shared, duration_s=2000.0).schedule()
    assert drawn.segments is not None
    counts = np.bincount([prompt[0][0] for prompt in drawn.segments], minlength=4)
    wanted = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(counts / counts.sum(), wanted / wanted.sum(), atol=0.02)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    turns=st.integers(1, 5),
    groups=st.integers(0, 3),
    limit=st.none() | st.integers(30, 200),
)
def test_conversations_hold_all_that_was_said(
    seed: int, turns: int, groups: int, limit: int | None
) -> None:
    drawn = workload(
        sessions=Sessions(turns=Uniform(min_tokens=1, max_tokens=turns), max_context_tokens=limit),
        shared_prefix=SharedPrefix(tokens=Fixed(tokens=7), groups=groups) if groups else None,
        duration_s=10.0,
        seed=seed,
    ).schedule()
    assert drawn.segments is not None
    assert drawn.after is not None
    assert drawn.think_s is not None
    assert (np.diff(drawn.arrived_at_s) >= 0).all()
    own: list[int] = []
    for i, prompt in enumerate(drawn.segments):
        assert sum(tokens for _, tokens in prompt) == drawn.prompt_tokens[i]
        before = drawn.after[i]
        if before < 0:
            assert drawn.think_s[i] == 0
            assert all(segment >= 0 for segment, _ in prompt)
        else:
            assert before < i
            answer = (-1 - int(before), int(drawn.output_tokens[before]))
            assert prompt[:-1] == (*drawn.segments[before], answer)
            if limit is not None and not groups:
                assert drawn.prompt_tokens[i] + drawn.output_tokens[i] <= limit
        own.append(prompt[-1][0])
    assert len(set(own)) == len(own)  # what each user adds is his own


def test_conversations_can_be_simulated() -> None:
    talk = workload(sessions=Sessions(turns=Fixed(tokens=2)))
    assert predict(plan(), latency(), talk).metrics["e2e_p50_s"].value > 0


def test_a_replay_can_be_simulated(tmp_path: Path) -> None:
    played = Workload.of_trace(replay(tmp_path))
    found = predict(plan(), latency(), played)
    # The outputs are 20 to 22 tokens long.
    assert found.metrics["e2e_p50_s"].value > 19 * found.metrics["tpot_p50_s"].value


def test_lognormal_has_its_median() -> None:
    law = LogNormal(median_tokens=100, mean_tokens=150, max_tokens=100_000)
    assert np.median(law.draw(40_000, np.random.default_rng(1))) == pytest.approx(100, rel=0.02)
