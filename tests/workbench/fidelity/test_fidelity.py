"""The twin against an engine whose step times are known: right where it is, wrong where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.errors import ExtrapolationError, InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from simulations.bounds import saturation_rps
from simulations.latency import Coefficients, ColdStart, FittedRange, LatencyModel
from simulations.traffic import Fixed, LogNormal, Replay, Uniform, Workload
from workbench.fidelity import Fidelity, FidelityStudy, Loads, compare_kept, fidelity, measure_loads
from workbench.measure import FakeEngine, Request, Run
from workbench.measure.fake import StepTime
from workbench.model import shipped_checkpoint
from workbench.report.fidelity_figures import (
    errors_by_load,
    fidelity_page,
    predicted_against_measured,
)

ENGINE = EngineArgs(max_model_len=1024, max_num_seqs=16, max_num_batched_tokens=1024)
VARIANT = Variant(name="bf16", model=str(shipped_checkpoint()))
STEP = StepTime(base_s=2e-3)
STUDY = FidelityStudy(
    prompt_tokens=LogNormal(median_tokens=90, mean_tokens=110, min_tokens=4, max_tokens=300),
    output_tokens=LogNormal(median_tokens=25, mean_tokens=35, min_tokens=2, max_tokens=100),
    shares=(0.3, 0.8),
    duration_s=20,
    warmup_s=2,
    repeats=3,
)


def model(slower: float = 1.0, **changes: Any) -> LatencyModel:
    """What the fake's steps really take, and draws within 2 % of it."""
    taken = {
        "base_s": slower * STEP.base_s,
        "per_seq_s": slower * STEP.per_seq_s,
        "floor_s": 0.0,
        "per_token_s": slower * STEP.per_token_s,
        "per_kv_token_s": slower * STEP.per_kv_token_s,
        "per_prefill_attention_s": 0.0,
        "step_overhead_s": 0.0,
    }
    fields: dict[str, Any] = {
        "variant": "bf16",
        **taken,
        "draws": [Coefficients(**{n: f * v for n, v in taken.items()}) for f in (0.99, 1.0, 1.01)],
        "residuals": np.exp(np.random.default_rng(0).normal(0, STEP.noise, 200)),
        "kv_blocks": 4096,
        "cold_start": ColdStart(start_s=30, source="assumed"),
        "fitted_range": FittedRange(prefill_tokens=1000, decode_seqs=32, kv_tokens=20_000),
        "n_steps": 100,
        "source": "made up",
    }
    return LatencyModel(**(fields | changes))


@dataclass
class Started:
    """Starts fakes, and keeps them."""

    engines: list[FakeEngine] = field(default_factory=list)
    spoiled: int = 0
    """So many of the first runs come back with a failed request."""

    def __call__(self, variant: Variant, engine_args: EngineArgs, folder: Path) -> FakeEngine:
        engine = Spoiling(variant, engine_args, seed=5, step_time=STEP)
        engine.spoiled = self.spoiled
        self.engines.append(engine)
        return engine


class Spoiling(FakeEngine):
    spoiled: int = 0

    def run(self, requests: Sequence[Request], **options: Any) -> Run:
        run = super().run(requests, **options)
        if not 1 < self.runs <= 1 + self.spoiled:  # the first is the warm-up
            return run
        spoiled = run.requests.copy()
        spoiled.loc[spoiled.index[-1], "error"] = "HTTP 503"
        return replace(run, requests=spoiled)


def tried(folder: Path, latency: LatencyModel | None, **options: Any) -> Fidelity:
    start = options.pop("start", None) or Started()
    study = options.pop("study", STUDY)
    return fidelity(
        study, VARIANT, latency, engine_args=ENGINE, folder=folder, start=start, **options
    )


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fidelity, Path]:
    folder = tmp_path_factory.mktemp("right")
    return tried(folder, model()), folder


def test_a_true_model_is_right_in_every_cell(right: tuple[Fidelity, Path]) -> None:
    found, _ = right
    assert found.holds, found.table().to_string()
    assert len(found.rows) == 2 * 10
    assert list(found.rows["load"].unique()) == ["30%", "80%"]
    assert set(found.rows["repeats"]) == {3}
    assert (found.rows["noise_floor"] > 0).any()
    medians = found.rows[found.rows["metric"].str.contains("_p50_")]
    assert (medians["relative_error"].abs() < 0.03).all()
    assert (found.doubts, found.left_out, found.missing) == ((), (), [])


def test_the_twin_is_asked_for_the_schedule_that_was_sent(right: tuple[Fidelity, Path]) -> None:
    found, _ = right
    for name, workload in found.loads.workloads.items():
        counted = workload.schedule().arrived_at_s >= workload.warmup_s
        assert set(found.points.loc[found.points["load"] == name, "requests"]) == {counted.sum()}
    rates = found.rows.groupby("load", sort=False)["rate_rps"].first()
    capacity = saturation_rps(found.loads.workloads["30%"], model(), ENGINE)
    assert found.loads.capacity_rps == pytest.approx(capacity, abs=1e-3)
    assert rates["30%"] == pytest.approx(0.3 * capacity, rel=0.3)
    assert "of the twin" in str(found)


def test_loads_take_turns(right: tuple[Fidelity, Path]) -> None:
    found, _ = right
    assert found.points["load"].tolist() == ["30%", "80%", "80%", "30%", "30%", "80%"]
    assert found.points["repeat"].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("slower", [1.3, 0.7])
def test_a_wrong_model_misses_with_the_right_sign(
    right: tuple[Fidelity, Path], slower: float
) -> None:
    """On the runs of before: no engine is started."""
    _, folder = right
    start = Started()
    found = tried(folder, model(slower), start=start)
    assert start.engines == []
    assert not found.holds
    tpot = found.rows[found.rows["metric"] == "tpot_p50_s"]
    assert (np.sign(tpot["relative_error"]) == np.sign(slower - 1)).all()
    assert set(tpot["verdict"]) == {"missed"}


def test_the_coefficients_have_their_share_of_the_interval(right: tuple[Fidelity, Path]) -> None:
    _, folder = right
    loose = model(draws=[model(f).draws[1] for f in (0.8, 1.2)])
    sure, unsure = (tried(folder, m).rows.set_index(["load", "metric"]) for m in (model(), loose))
    cell = ("80%", "e2e_p50_s")
    assert unsure.loc[cell, "of_model"] > max(0.9, sure.loc[cell, "of_model"])
    width = (unsure["high"] - unsure["low"]) / (sure["high"] - sure["low"])
    assert width[cell] > 3


def test_it_is_written_and_read(right: tuple[Fidelity, Path], tmp_path: Path) -> None:
    found, _ = right
    found.write(tmp_path)
    again = Fidelity.read(tmp_path)
    pd.testing.assert_frame_equal(again.rows, found.rows)
    pd.testing.assert_frame_equal(again.points, found.points)
    assert (again.loads, again.latency, str(again)) == (found.loads, found.latency, str(found))
    with pytest.raises(InputError, match="holds no fidelity"):
        Fidelity.read(tmp_path / "elsewhere")


def test_a_model_is_fitted_on_the_same_server_where_none_is_given(tmp_path: Path) -> None:
    start, shares = Started(), []
    found = tried(tmp_path, None, start=start, on_progress=lambda _, share: shares.append(share))
    assert len(start.engines) == 1
    assert found.latency.base_s == pytest.approx(STEP.base_s, rel=0.1)
    assert found.latency.per_token_s == pytest.approx(STEP.per_token_s, rel=0.1)
    tpot = found.rows[found.rows["metric"] == "tpot_p50_s"]
    assert (tpot["relative_error"].abs() < 0.03).all()
    assert shares == sorted(shares)
    again = tried(tmp_path, None, start=start)
    assert len(start.engines) == 1
    assert again.latency == found.latency


def test_a_bad_run_is_done_again_and_one_that_stays_bad_is_left_out(tmp_path: Path) -> None:
    once = tried(tmp_path / "once", model(), start=Started(spoiled=1))
    assert once.left_out == ()
    never = Started(spoiled=1000)
    with pytest.raises(MeasurementError, match="no run of any load"):
        tried(tmp_path / "never", model(), start=never)
    assert never.engines[0].runs == 1 + 6 * 3
    first = tried(tmp_path / "first", model(), start=Started(spoiled=3))
    assert len(first.left_out) == 1
    assert "HTTP 503" in first.left_out[0]
    assert first.rows.groupby("load", sort=False)["repeats"].first().tolist() == [2, 3]
    forced = tried(tmp_path / "first", model(), start=Started(spoiled=3), force=True)
    assert forced.left_out == ()


def test_more_than_the_server_can_take_is_a_load_like_others(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"shares": (1.3,), "repeats": 2})
    found = tried(tmp_path, model(), study=study)
    assert found.left_out == ()
    queued = found.rows.set_index("metric")
    assert queued.loc["ttft_p95_s", "measured"] > 1
    assert abs(queued.loc["ttft_p95_s", "relative_error"]) < 0.1


def test_a_trace_is_played_at_a_share_of_the_capacity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    trace = pd.DataFrame(
        {
            "arrived_at": np.arange(3000) * 1.0,
            "prompt_tokens": rng.integers(20, 200, 3000),
            "output_tokens": rng.integers(5, 60, 3000),
        }
    )
    trace.to_parquet(tmp_path / "trace.parquet", index=False)
    replay = Replay.of(tmp_path / "trace.parquet", start_s=50)
    study = STUDY.model_copy(update={"shares": (0.5,), "replay": replay, "repeats": 1})
    found = tried(tmp_path / "found", model(), study=study)
    played = found.loads.workloads["replay"]
    schedule = played.schedule()
    capacity = saturation_rps(played, model(), ENGINE)
    assert len(schedule) / played.duration_s == pytest.approx(0.6 * capacity, rel=0.05)
    first = trace["prompt_tokens"].to_numpy()[50:][: len(schedule)]
    np.testing.assert_array_equal(schedule.prompt_tokens, first)
    of_trace = found.rows[found.rows["load"] == "replay"].set_index("metric")
    assert abs(of_trace.loc["tpot_p50_s", "relative_error"]) < 0.03
    short = study.model_copy(update={"duration_s": 10_000.0})
    with pytest.raises(InputError, match="the trace has"):
        tried(tmp_path / "short", model(), study=short)


def test_what_cannot_be_asked_is_refused_before_an_engine_starts(tmp_path: Path) -> None:
    start = Started()
    narrow = model(fitted_range=FittedRange(prefill_tokens=1000, decode_seqs=8, kv_tokens=20_000))
    with pytest.raises(ExtrapolationError, match=r"max_num_seqs\(=16\)"):
        tried(tmp_path / "a", narrow, start=start)
    long = STUDY.model_copy(update={"prompt_tokens": Uniform(min_tokens=900, max_tokens=1000)})
    with pytest.raises(InputError, match="max_model_len"):
        tried(tmp_path / "b", model(), study=long, start=start)
    assert start.engines == []
    for wrong in ({"shares": ()}, {"shares": (0.5, 0.5)}, {"shares": (-1.0,)}):
        with pytest.raises(ValueError, match="shares"):
            FidelityStudy(**(STUDY.model_dump() | wrong))


def test_beyond_the_range_by_force_and_known_lengths_are_doubts(tmp_path: Path) -> None:
    fixed = {"prompt_tokens": Fixed(tokens=64), "output_tokens": Fixed(tokens=16)}
    study = STUDY.model_copy(update={**fixed, "shares": (0.5,), "repeats": 1})
    narrow = FittedRange(prefill_tokens=1000, decode_seqs=8, kv_tokens=20_000)
    found = tried(
        tmp_path,
        model(fitted_range=narrow, shapes=("64/16 x8",), kv_blocks=100),
        study=study,
        force=True,
    )
    text = " ".join(found.doubts)
    for said in ("8 sequences decoded together", "64/16 tokens", "4096 KV blocks, the model 100"):
        assert said in text


def test_loads_stay_what_they_were_for_another_model(tmp_path: Path) -> None:
    first = Loads.of(STUDY, model(), ENGINE, tmp_path)
    assert Loads.of(STUDY, model(2.0), ENGINE, tmp_path) == first
    other = STUDY.model_copy(update={"seed": 9})
    assert Loads.of(other, model(2.0), ENGINE, tmp_path).capacity_rps < 0.6 * first.capacity_rps
    given = STUDY.model_copy(update={"capacity_rps": 5.0})
    loads = Loads.of(given, model(), ENGINE, tmp_path)
    assert (loads.capacity_rps, loads.capacity_source) == (5.0, "given")
    counted: Workload = loads.workloads["30%"]
    assert counted.duration_s == pytest.approx(2 + 100 / 1.5, rel=1e-3)


def test_the_figures_show_the_cells(right: tuple[Fidelity, Path], tmp_path: Path) -> None:
    found, _ = right
    figure = predicted_against_measured(found)
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(marks) == 9
    cell = found.rows[found.rows["metric"] == "ttft_p99_s"]
    shown = next(trace for trace in marks if trace.name == "TTFT p99")
    np.testing.assert_allclose(shown.x, 1e3 * cell["measured"])
    np.testing.assert_allclose(shown.y, 1e3 * cell["predicted"])
    np.testing.assert_allclose(
        shown.error_x.array, 1e3 * (cell["measured_high"] - cell["measured"])
    )
    errors = {trace.name: trace for trace in errors_by_load(found).data}
    assert len(errors) == 10
    np.testing.assert_allclose(errors["TTFT p99"].y, 100 * cell["relative_error"])
    text = fidelity_page(found, tmp_path / "page.html").read_text()
    assert "within target" in text
    assert str(found) in text


def test_calibration_and_loads_take_turns_where_the_loads_are_settled(tmp_path: Path) -> None:
    """A machine that becomes slower while it is measured must not set the fit against the loads."""
    start = Started()
    study = STUDY.model_copy(update={"capacity_rps": 30.0, "shares": (0.4, 0.8)})
    found = tried(tmp_path, None, start=start, study=study)
    assert len(start.engines) == 1
    assert found.latency.base_s == pytest.approx(STEP.base_s, rel=0.1)
    written = sorted(
        (head.stat().st_mtime_ns, head.parent.parent.name == "calibration")
        for head in tmp_path.rglob("measurement.json")
    )
    of_calibration = [is_calibration for _, is_calibration in written]
    assert len(of_calibration) == 14 + 6
    for half in (of_calibration[:10], of_calibration[10:]):
        assert sum(half) in (6, 7)


def test_what_the_time_limit_left_out_is_done_by_the_next_call(tmp_path: Path) -> None:
    """A load of 20 s does not fit into 15; what was done before stays."""
    given = STUDY.model_copy(update={"capacity_rps": 30.0, "shares": (0.4,)})
    once, twice = (given.model_copy(update={"repeats": n}) for n in (1, 2))
    tried(tmp_path, model(), study=once, time_limit_s=25.0)
    kept = {head: head.stat().st_mtime_ns for head in tmp_path.rglob("measurement.json")}
    assert len(kept) == 1
    with pytest.raises(MeasurementError, match="time limit came after 1 of 2 runs"):
        tried(tmp_path, model(), study=twice, time_limit_s=15.0)
    assert len(tried(tmp_path, model(), study=twice).points) == 2
    assert {head: head.stat().st_mtime_ns for head in kept} == kept


def test_measured_here_and_compared_elsewhere(tmp_path: Path) -> None:
    """What lies there is compared, whole or not, and no engine is started."""
    study = STUDY.model_copy(update={"capacity_rps": 30.0, "shares": (0.4, 0.8)})
    runs = measure_loads(
        study, VARIANT, model(), engine_args=ENGINE, folder=tmp_path, start=Started()
    )
    assert (len(runs.fitted_to), len(runs.of_loads)) == (0, 6)
    assert not (tmp_path / "fidelity.json").exists()
    (tmp_path / "bf16-80pct-repeat2" / "measurement.json").unlink()
    found = compare_kept(tmp_path, model())
    assert found.rows.groupby("load", sort=False)["repeats"].first().tolist() == [3, 2]
    with pytest.raises(MeasurementError, match="holds no run of these loads"):
        tried(tmp_path / "empty", model(), study=study, only_kept=True)
    with pytest.raises(InputError, match="holds no runs of loads"):
        compare_kept(tmp_path / "elsewhere")


def test_a_trace_is_played_as_it_is_and_alone(tmp_path: Path) -> None:
    trace = pd.DataFrame(
        {"arrived_at": np.arange(300) * 0.5, "prompt_tokens": 40, "output_tokens": 10}
    )
    trace.to_parquet(tmp_path / "trace.parquet", index=False)
    replay = Replay.of(tmp_path / "trace.parquet", start_s=50, length_s=40, speedup=4)
    changed = {"shares": (), "replay": replay, "replay_share": None, "capacity_rps": 30.0}
    study = STUDY.model_copy(update=changed | {"repeats": 1, "warmup_s": 1.0})
    assert study.settled
    found = tried(tmp_path / "found", model(), study=study)
    assert list(found.loads.workloads) == ["replay"]
    assert found.loads.workloads["replay"].duration_s == pytest.approx(10.0)
    assert found.points["requests"].tolist() == [72]
