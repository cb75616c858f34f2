"""The fit finds what steps were made from, says honestly how wrong it is, and refuses the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ExtrapolationError, InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.engine import simulate_replica
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.traffic import ClosedLoop, Fixed, LogNormal, Poisson, Schedule, Workload
from workbench.fit import check_range, fit, fitted_max_num_seqs
from workbench.measure import Environment, FakeEngine, Measurement, ReplicaInfo, measure
from workbench.measure.fake import StepTime
from workbench.model import shipped_checkpoint

ENGINE = EngineArgs(max_model_len=1024, max_num_seqs=32, max_num_batched_tokens=2048)
TRUE = {
    "base_s": 2.4e-3,
    "per_prefill_token_s": 2.5e-5,
    "per_decode_seq_s": 6e-5,
    "per_kv_token_s": 2e-7,
}


def steps(
    n: int,
    seed: int,
    *,
    noise: float = 0.03,
    outliers: float = 0.02,
    floor_s: float = 0.0,
    attention_s: float = 0.0,
    gap_s: float = 0.0,
) -> pd.DataFrame:
    """Steps of a busy server: now and then a prefill of one or two requests."""
    rng = np.random.default_rng(seed)
    decode = rng.integers(1, 33, n)
    kv = decode * rng.integers(20, 400, n)
    requests = rng.choice([0, 0, 0, 1, 2], n)
    prefill = requests * rng.integers(16, 300, n)
    attention = prefill * (prefill / np.maximum(requests, 1) + 1) / 2
    exact = np.maximum(
        floor_s,
        TRUE["base_s"]
        + TRUE["per_prefill_token_s"] * prefill
        + TRUE["per_decode_seq_s"] * decode
        + TRUE["per_kv_token_s"] * kv
        + attention_s * attention,
    )
    took = exact * np.exp(rng.normal(0, noise, n))
    took = np.where(rng.random(n) < outliers, took * rng.uniform(10, 100, n), took)
    return pd.DataFrame(
        {
            "t_s": np.cumsum(took + gap_s),
            "step_s": took,
            "gap_s": gap_s,
            "prefill_requests": requests,
            "prefill_tokens": prefill,
            "decode_seqs": decode,
            "kv_tokens": kv + prefill + decode,
            "running": decode + requests,
            "waiting": 0,
        }
    )


def measurement(table: pd.DataFrame, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "name": "made-up",
        "mode": "offline",
        "variant": Variant(name="bf16", model="somewhere"),
        "engine": ENGINE,
        "workload": Workload(
            arrivals=ClosedLoop(concurrency=8, requests=8),
            prompt_tokens=Fixed(tokens=64),
            output_tokens=Fixed(tokens=64),
        ),
        "requests": pd.DataFrame(),
        "steps": table,
        "replica": ReplicaInfo(
            engine_version="0", kv_blocks=4096, block_size_tokens=16, start_s=30.0
        ),
        "environment": Environment(
            hardware="none",
            gpu_count=0,
            cpu_count=1,
            memory_gib=1.0,
            python="3",
            started_at="2026-01-01T00:00:00+00:00",
        ),
    }
    return Measurement(**(fields | changes))


def faked(workload: Workload, mode: Any, folder: Path, seed: int = 0) -> Measurement:
    variant = Variant(name="bf16", model=str(shipped_checkpoint()))
    with FakeEngine(variant, ENGINE, seed=seed) as engine:
        return measure(
            variant, workload, engine_args=ENGINE, mode=mode, folder=folder, engine=engine
        )


def poisson(rate_rps: float, seed: int = 0) -> Workload:
    return Workload(
        arrivals=Poisson(rate_rps=rate_rps),
        prompt_tokens=LogNormal(median_tokens=60, mean_tokens=90, min_tokens=4, max_tokens=400),
        output_tokens=LogNormal(median_tokens=40, mean_tokens=60, min_tokens=2, max_tokens=300),
        duration_s=60,
        seed=seed,
    )


# -- recovery ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outliers", [0.0, 0.02])
def test_known_coefficients_are_recovered_in_spite_of_outliers(outliers: float) -> None:
    model = fit([measurement(steps(4000, 1, outliers=outliers))])
    for name, true in TRUE.items():
        assert getattr(model, name) == pytest.approx(true, rel=0.05), name
    # Small beside the shortest step: what the data do not hold is not found.
    assert model.floor_s < 1.5 * TRUE["base_s"]
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


def test_a_floor_is_found_where_there_is_one() -> None:
    table = steps(4000, 3, floor_s=4.5e-3)
    model = fit([measurement(table)])
    assert model.floor_s == pytest.approx(4.5e-3, rel=0.02)
    assert model.per_kv_token_s == pytest.approx(TRUE["per_kv_token_s"], rel=0.1)


def test_prefill_attention_is_found_where_it_matters() -> None:
    model = fit([measurement(steps(4000, 4, attention_s=2e-7))])
    assert model.per_prefill_attention_s == pytest.approx(2e-7, rel=0.15)
    assert fit([measurement(steps(4000, 4))]).per_prefill_attention_s == 0


def test_a_server_on_top_of_offline_steps_gives_its_overhead() -> None:
    on_server = steps(2000, 6).assign(step_s=lambda t: t["step_s"] + 7e-4)
    requests = _answered(np.arange(40.0), ttft_s=0.05)
    model = fit(
        [
            measurement(steps(2000, 5)),
            measurement(on_server, mode="server", requests=requests, workload=poisson(1.0)),
        ]
    )
    assert model.step_overhead_s == pytest.approx(7e-4, rel=0.1)
    assert model.base_s == pytest.approx(TRUE["base_s"], rel=0.05)
    assert "server_step_median" in model.heldout_error


def test_gaps_between_steps_are_the_step_overhead() -> None:
    assert fit([measurement(steps(600, 7, gap_s=3e-4))]).step_overhead_s == pytest.approx(3e-4)


def _answered(sent_s: Any, ttft_s: float) -> pd.DataFrame:
    sent = np.asarray(sent_s, dtype=float)
    return pd.DataFrame(
        {
            "sent_s": sent,
            "first_token_s": sent + ttft_s,
            "end_s": sent + ttft_s + 0.1,
            "prompt_tokens": 100,
            "output_tokens": 10,
            "counted": True,
        }
    )


def test_request_overhead_is_what_the_twin_lacks_at_the_lightest_load() -> None:
    light = measurement(
        steps(600, 8).assign(running=1),
        name="light",
        mode="server",
        requests=_answered(np.arange(40.0), ttft_s=0.05),
        workload=poisson(1.0),
    )
    heavy = measurement(
        steps(600, 9).assign(running=30),
        name="heavy",
        mode="server",
        requests=_answered(np.arange(40.0), ttft_s=5.0),
        workload=poisson(9.0),
    )
    model = fit([light, heavy])
    alone_s = float(model.step_time_s(100, 0, 0)) + model.step_overhead_s
    assert model.request_overhead_s == pytest.approx(0.05 - alone_s, rel=1e-3)


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
    model = fit([measurement(steps(200, seed, noise=noise, outliers=outliers))])
    one = np.array([100, 8, 800, 5000])
    for i in range(4):
        more = one.copy()
        more[i] *= 2
        assert model.step_time_s(*more) >= model.step_time_s(*one)
    assert model.step_time_s(*one) > 0


def test_the_twin_on_a_fitted_fake_gives_the_fakes_own_latencies(tmp_path: Path) -> None:
    sweep = [
        faked(
            Workload(
                arrivals=ClosedLoop(concurrency=batch, requests=2 * batch),
                prompt_tokens=Fixed(tokens=64),
                output_tokens=Fixed(tokens=64),
            ),
            "offline",
            tmp_path,
            seed=batch,
        )
        for batch in (1, 4, 16, 32)
    ]
    model = fit([*sweep, faked(poisson(4.0), "server", tmp_path)])
    assert model.base_s == pytest.approx(StepTime().base_s, rel=0.03)
    assert model.step_overhead_s < 0.02 * StepTime().base_s
    assert model.request_overhead_s < 1e-3
    assert model.cold_start.start_s == 30
    unseen = faked(poisson(14.0, seed=5), "server", tmp_path, seed=9)
    seen = unseen.latencies()
    schedule = Schedule(
        seen["sent_s"].to_numpy(),
        seen["prompt_tokens"].to_numpy(),
        seen["output_tokens"].to_numpy(),
    )
    predicted = simulate_replica(schedule, model, ENGINE)
    for column, tolerance in (("ttft_s", 0.05), ("tpot_s", 0.03), ("e2e_s", 0.03)):
        for q in (0.5, 0.99):
            assert predicted[column].quantile(q) == pytest.approx(
                seen[column].quantile(q), rel=tolerance
            ), (column, q)


# -- what is borrowed, and what is refused -------------------------------------------------------


def test_overheads_may_be_borrowed_where_no_server_was_measured() -> None:
    other = _model(variant="int8", step_overhead_s=5e-4, request_overhead_s=4e-3)
    alone = fit([measurement(steps(300, 13))])
    borrowed = fit([measurement(steps(300, 13))], overheads_from=other)
    assert (alone.request_overhead_s, borrowed.request_overhead_s) == (0, 4e-3)
    assert borrowed.step_overhead_s == 5e-4
    assert "borrowed from int8" in borrowed.source
    assert "not measured" in alone.source


def _model(**changes: Any) -> LatencyModel:
    fields: dict[str, Any] = {
        "variant": "bf16",
        **TRUE,
        "kv_blocks": 4096,
        "cold_start": ColdStart(start_s=30, source="assumed"),
        "fitted_range": FittedRange(prefill_tokens=1000, decode_seqs=32, kv_tokens=10_000),
        "n_steps": 100,
        "source": "made up",
    }
    return LatencyModel(**(fields | changes))


def test_the_cold_start_is_measured_unless_given() -> None:
    given_one = ColdStart(start_s=99, source="given")
    assert fit([measurement(steps(300, 14))], cold_start=given_one).cold_start == given_one
    own = fit([measurement(steps(300, 14))]).cold_start
    assert own.start_s == 30
    assert "without a server's imports" in own.source


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
    model = _model(fitted_range=FittedRange(**largest))
    args = EngineArgs.model_validate(ENGINE.model_dump() | engine)
    if complaint is None:
        check_range(model, args, poisson(1.0))
    else:
        with pytest.raises(ExtrapolationError, match=complaint):
            check_range(model, args, poisson(1.0))
    assert fitted_max_num_seqs(model) == 40
