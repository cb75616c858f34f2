"""The fit finds what steps were made from, says honestly how wrong it is, and refuses the rest."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ExtrapolationError, InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.latency import ColdStart, FittedRange
from simulations.limits import check_range, fitted_max_num_seqs
from simulations.traffic import ClosedLoop, Fixed, Workload
from workbench.fit import fit
from workbench.measure import Measurement, ReplicaInfo
from workbench.measure.coldstart import ColdStartParts

from .made import ENGINE, TRUE, environment, latency_model, measurement, poisson, steps

# -- recovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outliers", [0.0, 0.02])
def test_known_coefficients_are_recovered_in_spite_of_outliers(outliers: float) -> None:
    model = fit([measurement(steps(4000, 1, outliers=outliers))])
    for name, true in TRUE.items():
        assert getattr(model, name) == pytest.approx(true, rel=0.05), name
    assert model.floor_s == 0, "what the data do not hold is not found"
    assert model.step_overhead_s == 0
    # The scatter itself: the median of |N(0, 3 %)| is 2 %.
    error = model.heldout_error["step_median"]
    assert error.low < error.value < error.high
    assert error.value == pytest.approx(0.6745 * 0.03, rel=0.15)


def test_without_noise_the_fit_is_exact() -> None:
    model = fit([measurement(steps(600, 2, noise=0.0, outliers=0.0))])
    for name, true in TRUE.items():
        assert getattr(model, name) == pytest.approx(true, rel=1e-6), name
    assert abs(model.heldout_error["total_time"].value) < 1e-6


@pytest.mark.parametrize("knee_tokens", [40, 200])
def test_the_knee_is_found_where_there_is_one(knee_tokens: int) -> None:
    floor_s = knee_tokens * TRUE["per_token_s"]
    model = fit([measurement(steps(4000, 3, floor_s=floor_s))])
    assert model.floor_s / model.per_token_s == pytest.approx(knee_tokens, rel=0.15)
    assert model.base_s + model.floor_s == pytest.approx(TRUE["base_s"] + floor_s, rel=0.02)
    for name in ("per_seq_s", "per_token_s", "per_kv_token_s"):
        assert getattr(model, name) == pytest.approx(TRUE[name], rel=0.1), name


def test_padding_is_found_where_the_engine_pads_and_only_there() -> None:
    sizes = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    engine = ENGINE.model_copy(update={"max_num_seqs": 32})
    on_gpu = environment().model_copy(update={"gpu_count": 1})
    padded = steps(6000, 4, noise=0.005, pad_to_tokens=sizes).assign(step_s=_dear_tokens(sizes))
    found = fit([measurement(padded, engine=engine, environment=on_gpu)])
    assert found.pad_to_tokens == sizes
    assert fit([measurement(padded, engine=engine)]).pad_to_tokens == (), "a CPU does not pad"
    even = steps(6000, 4, noise=0.005).assign(step_s=_dear_tokens(()))
    assert fit([measurement(even, engine=engine, environment=on_gpu)]).pad_to_tokens == ()


def _dear_tokens(sizes: tuple[int, ...]) -> Any:
    """Durations of `steps(6000, 4)` where a token costs as much as on a small device."""
    table = steps(6000, 4, noise=0.0, outliers=0.0)
    model = latency_model(per_token_s=4e-4, pad_to_tokens=sizes)
    read = table["kv_tokens"] - table["prefill_tokens"] - table["decode_seqs"]
    exact = model.step_time_s(
        table["prefill_tokens"], table["decode_seqs"], read, 0.0, table["prefill_requests"]
    )
    return exact * np.exp(np.random.default_rng(9).normal(0, 0.005, len(exact)))


def test_with_async_scheduling_a_prefill_is_timed_with_its_neighbours() -> None:
    """The engine waits with the result of a step while it launches the prefill behind it."""
    table = steps(4000, 3, outliers=0.0)
    took = table["step_s"].to_numpy().copy()
    begins = np.flatnonzero(table["prefill_tokens"].to_numpy()[1:] > 0) + 1
    late_s = 0.8 * took[begins]
    took[begins] -= late_s
    took[begins - 1] += late_s
    shifted = table.assign(step_s=took)
    replica = ReplicaInfo(
        engine_version="0", kv_blocks=4096, block_size_tokens=16, start_s=30, async_scheduling=True
    )
    model = fit([measurement(shifted, replica=replica)])
    for name, true in TRUE.items():
        assert getattr(model, name) == pytest.approx(true, rel=0.1), name
    wrong = fit([measurement(shifted)])
    assert wrong.per_token_s < 0.8 * TRUE["per_token_s"]


def test_prefills_that_found_the_engine_idle_do_not_pass_for_those_of_a_busy_one() -> None:
    """With async scheduling an idle engine waits for the launch that a busy one hides."""
    busy = steps(4000, 3, outliers=0.0)
    alone = steps(800, 5, outliers=0.0)
    idle = alone["prefill_tokens"] > 0
    woken = alone.assign(
        step_s=alone["step_s"] + 4e-3 * idle, gap_s=np.where(idle, np.nan, alone["gap_s"])
    )
    replica = ReplicaInfo(
        engine_version="0", kv_blocks=4096, block_size_tokens=16, start_s=30, async_scheduling=True
    )
    few_busy = busy[:400]
    model = fit([measurement(t, replica=replica) for t in (few_busy, woken)])
    assert model.prefill_step_s < 5e-4
    assert model.prefill_launch_s > 1.3 * float(model.step_time_s(150, 0, 0, 0, 1))
    only = fit([measurement(woken, replica=replica)])
    assert only.prefill_step_s > 2e-3, "where there is nothing else, they are what is known"
    assert only.prefill_launch_s == 0


def test_what_is_waited_for_a_launch_is_told_from_what_a_prefill_computes() -> None:
    """A launch of 12 ms is hidden behind a long step before it, and seen behind a short one."""
    launch_s = 12e-3
    table = steps(4000, 3, outliers=0.0)
    took, prefill = table["step_s"].to_numpy().copy(), table["prefill_tokens"].to_numpy() > 0
    for i in np.flatnonzero(prefill):
        took[i] = max(took[i], launch_s - (took[i - 1] if i else 0))
    assert (took > table["step_s"] + 1e-3).sum() > 100
    idle = steps(400, 5, outliers=0.0)
    woken = (idle["prefill_tokens"] > 0).to_numpy()
    waited = idle.assign(
        step_s=np.where(woken, np.maximum(idle["step_s"], launch_s), idle["step_s"]),
        gap_s=np.where(woken, np.nan, idle["gap_s"]),
    )
    replica = ReplicaInfo(
        engine_version="0", kv_blocks=4096, block_size_tokens=16, start_s=30, async_scheduling=True
    )
    both = [measurement(t, replica=replica) for t in (table.assign(step_s=took), waited)]
    model = fit(both)
    assert model.prefill_launch_s == pytest.approx(launch_s, rel=0.1)
    for name, true in TRUE.items():
        assert getattr(model, name) == pytest.approx(true, rel=0.1), name
    assert model.prefill_step_s < 3e-4


def test_the_coefficients_do_not_hang_on_the_seed() -> None:
    """It deals what is held out, and is the bootstrap's: what is fitted, is fitted to all steps."""
    made = [measurement(steps(1500, 4, prefill_step_s=2e-3))]
    one, other = (fit(made, seed=seed, draws=1) for seed in (0, 7))
    told = {"draws", "residuals", "heldout_error", "heldout_by"}
    assert one.model_dump(exclude=told) == other.model_dump(exclude=told)
    assert one.heldout_error != other.heldout_error


def test_prefill_attention_is_found_where_it_matters() -> None:
    model = fit([measurement(steps(4000, 4, attention_s=2e-7))])
    assert model.per_prefill_attention_s == pytest.approx(2e-7, rel=0.15)
    assert fit([measurement(steps(4000, 4))]).per_prefill_attention_s < 5e-9


def test_what_any_prefill_costs_is_found_where_it_costs_something() -> None:
    model = fit([measurement(steps(4000, 4, prefill_step_s=5e-3))])
    assert model.prefill_step_s == pytest.approx(5e-3, rel=0.05)
    for name, true in TRUE.items():
        assert getattr(model, name) == pytest.approx(true, rel=0.05), name
    assert np.std([draw.prefill_step_s for draw in model.draws]) < 5e-4
    assert fit([measurement(steps(4000, 4))]).prefill_step_s < 5e-5


# -- scatter and uncertainty -------------------------------------------------------------------


def test_residuals_are_what_was_measured_and_not_a_law() -> None:
    table = steps(8000, 21, noise=0.0, outliers=0.0)
    skewed = np.random.default_rng(2).exponential(0.1, len(table))
    model = fit([measurement(table.assign(step_s=table["step_s"] * (0.95 + skewed)))])
    found = np.array(model.residuals)
    assert len(found) == 200
    assert (np.diff(found) >= 0).all()
    # Of 0.95 + Exp(0.1): the mean and the third quartile stand in this proportion.
    expected = (0.95 + 0.1) / (0.95 + 0.1 * np.log(4))
    assert found.mean() / np.quantile(found, 0.75) == pytest.approx(expected, rel=0.01)
    lower, upper = np.median(found) - found[2], found[-3] - np.median(found)
    assert upper > 2 * lower, "it keeps the tail on its side"


def test_draws_cover_the_truth_and_are_no_wider_than_they_need() -> None:
    inside = []
    for seed in range(8):
        parts = [measurement(steps(300, 100 + 7 * seed + i, outliers=0.0)) for i in range(6)]
        model = fit(parts, seed=seed, draws=30)
        assert len(model.draws) == 30
        for name, true in TRUE.items():
            drawn = np.array([getattr(draw, name) for draw in model.draws])
            low, high = np.quantile(drawn, [0.05, 0.95])
            inside.append(low <= true <= high)
            assert drawn.std() < 0.2 * true, name
    assert np.mean(inside) >= 0.8


def test_a_draw_is_a_model_of_its_own() -> None:
    model = fit([measurement(steps(600, 22))], draws=3)
    one = model.draw(1)
    assert one.base_s == model.draws[1].base_s
    assert one.per_kv_token_s == model.draws[1].per_kv_token_s
    assert (one.draws, one.kv_blocks, one.residuals) == ((), model.kv_blocks, model.residuals)
    with pytest.raises(InputError, match=r"i\(=3\)"):
        model.draw(3)


def test_errors_are_told_by_shape_and_load() -> None:
    slow = steps(600, 23).assign(step_s=lambda t: 1.5 * t["step_s"])
    heavy = Workload(
        arrivals=ClosedLoop(concurrency=16, requests=32),
        prompt_tokens=Fixed(tokens=400),
        output_tokens=Fixed(tokens=16),
    )
    model = fit([measurement(steps(3000, 24)), measurement(slow, workload=heavy)])
    assert model.shapes[1] == "400/16 x16"
    assert model.heldout_by["400/16 x16"].value > 5 * model.heldout_by[model.shapes[0]].value


# -- honesty -------------------------------------------------------------------------------------


def test_the_error_is_large_where_the_terms_cannot_explain_the_steps() -> None:
    table = steps(3000, 10)
    shuffled = np.random.default_rng(0).permutation(table["step_s"].to_numpy())
    wrong = fit([measurement(table.assign(step_s=shuffled))])
    right = fit([measurement(table)])
    assert wrong.heldout_error["step_median"].low > 5 * right.heldout_error["step_median"].high


def test_total_time_counts_the_outliers_that_the_fit_ignores() -> None:
    model = fit([measurement(steps(4000, 11, outliers=0.05))])
    assert model.heldout_error["total_time"].value < -0.5
    assert model.heldout_error["step_median"].value < 0.05


def test_the_same_seed_gives_the_same_model_and_no_input_is_changed() -> None:
    table = steps(500, 12)
    before = table.copy(deep=True)
    assert fit([measurement(table)], seed=3) == fit([measurement(table)], seed=3)
    pd.testing.assert_frame_equal(table, before)


# -- physics -------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0.0, 0.5), outliers=st.floats(0.0, 0.3))
def test_more_work_never_takes_less_time(seed: int, noise: float, outliers: float) -> None:
    model = fit([measurement(steps(200, seed, noise=noise, outliers=outliers))], draws=0)
    one = np.array([100, 8, 800, 5000])
    for i in range(4):
        more = one.copy()
        more[i] *= 2
        assert model.step_time_s(*more) >= model.step_time_s(*one)
    assert model.step_time_s(*one) > 0


# -- what is borrowed, and what is refused -------------------------------------------------------


def test_the_cold_start_is_measured_unless_given() -> None:
    given_one = ColdStart(start_s=99, source="given")
    assert fit([measurement(steps(300, 14))], cold_start=given_one).cold_start == given_one
    own = fit([measurement(steps(300, 14))]).cold_start
    assert own.start_s == 30
    assert "without a server's imports" in own.source


def test_the_parts_of_a_cold_start_are_those_of_the_median_start() -> None:
    parts = ColdStartParts(process_s=4, load_s=6, compile_s=10, capture_s=3, warmup_s=5, server_s=2)

    def started(start_s: float, cold_start: ColdStartParts | None) -> Measurement:
        replica = ReplicaInfo(
            engine_version="0",
            kv_blocks=4096,
            block_size_tokens=16,
            start_s=start_s,
            cold_start=cold_start,
        )
        return measurement(steps(300, 14), replica=replica)

    found = fit([started(50, None), started(30, parts), started(29, None)]).cold_start
    assert (found.load_s, found.compile_s, found.capture_s, found.warmup_s) == (6, 10, 3, 5)
    assert found.start_s == 30
    assert found.starting(weights_cached=True, compile_saved=True)["process"] == 6
    # A clock that says less than the log: the parts share what there is.
    short = fit([started(12, parts)]).cold_start
    assert (short.load_s, short.compile_s, short.start_s) == (3, 5, 12)
    assert fit([started(12, None)]).cold_start.load_s == 0


def test_what_cannot_be_fitted_is_refused() -> None:
    good = measurement(steps(300, 15))
    with pytest.raises(InputError, match="is empty"):
        fit([])
    with pytest.raises(InputError, match=r"holdout\(=1"):
        fit([good], holdout=1.0)
    other = measurement(steps(300, 15), variant=Variant(name="int8", model="x"))
    with pytest.raises(InputError, match=r"several variants\(=\['bf16', 'int8'\]"):
        fit([good, other])
    with pytest.raises(MeasurementError, match="sent late"):
        fit([good, measurement(steps(300, 15), invalid=("the client sent late",))])
    late = measurement(steps(300, 15), invalid=("the client sent late",))
    forced = fit([good, late], force=True)
    assert forced.doubts == (f"{late.name}: the client sent late",)
    borrowed = fit([good], overheads_from=forced.model_copy(update={"variant": "other"}))
    assert borrowed.doubts == (forced.doubts if good.mode == "offline" else ())
    assert fit([good]).doubts == ()
    with pytest.raises(MeasurementError, match="12 engine steps are too few"):
        fit([measurement(steps(12, 15))])
    unknown = ReplicaInfo(engine_version="0", kv_blocks=0, block_size_tokens=16, start_s=1)
    with pytest.raises(MeasurementError, match="kv_blocks"):
        fit([measurement(steps(300, 15), replica=unknown)])
    elsewhere = ReplicaInfo(engine_version="0", kv_blocks=10, block_size_tokens=16, start_s=0)
    with pytest.raises(InputError, match="Give cold_start"):
        fit([measurement(steps(300, 15), replica=elsewhere)])


def test_the_fitted_range_is_the_largest_step_seen() -> None:
    table = steps(300, 16)
    found = fit([measurement(table)]).fitted_range
    assert found.decode_seqs == table["decode_seqs"].max()
    assert found.prefill_tokens == table["prefill_tokens"].max()
    reads = table["kv_tokens"] - table["prefill_tokens"] - table["decode_seqs"]
    assert found.kv_tokens == reads.max()


@pytest.mark.parametrize(
    ("engine", "seen", "complaint"),
    [
        ({"max_num_seqs": 40}, {}, None),
        ({"max_num_seqs": 41}, {}, r"max_num_seqs\(=41\).*32 sequences"),
        ({}, {"prefill_tokens": 200}, None),
        ({}, {"prefill_tokens": 199}, "prefill of 400 tokens"),
        ({"max_num_batched_tokens": 128}, {"prefill_tokens": 64}, None),
        ({}, {"kv_tokens": 500}, "KV tokens"),
    ],
)
def test_extrapolation_is_refused(
    engine: dict[str, int], seen: dict[str, int], complaint: str | None
) -> None:
    largest = {"prefill_tokens": 1000, "decode_seqs": 32, "kv_tokens": 10_000} | seen
    model = latency_model(fitted_range=FittedRange(**largest))
    args = EngineArgs.model_validate(ENGINE.model_dump() | engine)
    if complaint is None:
        assert check_range(model, args, poisson(1.0)) == ()
    else:
        with pytest.raises(ExtrapolationError, match=complaint):
            check_range(model, args, poisson(1.0))
        assert re.search(complaint, check_range(model, args, poisson(1.0), force=True)[0])
    assert fitted_max_num_seqs(model) == 40


def test_it_tells_how_far_it_is() -> None:
    told: list[tuple[str, float]] = []
    fit(
        [measurement(steps(600, 2))],
        draws=2,
        on_progress=lambda doing, share: told.append((doing, share)),
    )
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert ("draw 2 of 2", 0.75) in told
    assert told[-1] == ("fitted", 1.0)
