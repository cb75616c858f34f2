"""Verify: true predictions hold, wrong ones do not, and a run that cannot be trusted is neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serving.errors import BundleError, InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from serving.values import Estimate
from simulations.result import Prediction
from simulations.traffic import ClosedLoop, Fixed, Workload
from tests.workbench.export.bundles import LOAD, evidence, fake, list_again, plan, prediction, wrong
from workbench.cli import app
from workbench.export import export
from workbench.measure import FakeEngine, Measurement, Request, Run, measure
from workbench.track import Tracker
from workbench.verify import Verification, verify


class Limping(FakeEngine):
    """An engine that leaves some of its runs with a request that failed."""

    failing: frozenset[int] = frozenset()
    seen: tuple[Sequence[Request], ...] = ()

    def run(self, requests: Sequence[Request], **options: Any) -> Run:
        self.seen = (*self.seen, requests)
        run = super().run(requests, **options)
        if self.runs not in self.failing:
            return run
        spoiled = run.requests.copy()
        spoiled.loc[spoiled.index[-1], "error"] = "HTTP 503"
        return replace(run, requests=spoiled)


def limping(*failing: int) -> Limping:
    engine = Limping(Variant(name="bf16", model="m"), EngineArgs())
    engine.failing = frozenset(failing)
    return engine


def bundle_of(told: Prediction, tmp_path: Path) -> Path:
    return export(plan(), tmp_path / "bundle", evidence=evidence(told), force=True)


def test_a_true_prediction_holds(tmp_path: Path) -> None:
    bundle = bundle_of(prediction(), tmp_path)
    with fake() as engine:
        found = verify(bundle, folder=tmp_path / "found", engine=engine)
    assert found.holds, found.rows
    rows = found.rows.set_index("metric")
    assert set(rows.index) == set(prediction().metrics)
    assert rows.loc["ttft_p99_s", "tolerance"] == prediction().tolerance_p99
    assert rows.loc["output_tokens_per_s", "tolerance"] == prediction().tolerance_p50
    assert found.measurement is not None
    summary = found.measurement.summary()
    for metric, row in rows.iterrows():
        assert row["measured"] == summary[str(metric)]
        assert row["relative_error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
    assert "holds" in found._repr_html_()
    assert "not hold" not in found._repr_html_()


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_wrong_prediction_does_not_hold(tmp_path: Path, factor: float) -> None:
    bundle = bundle_of(wrong(prediction(), factor), tmp_path)
    with fake() as engine:
        found = verify(bundle, folder=tmp_path / "found", engine=engine)
    assert not found.holds
    medians = found.rows[found.rows["tolerance"] == prediction().tolerance_p50]
    assert len(medians) >= 4
    assert not medians["holds"].any()
    assert "does not hold" in found._repr_html_()


def test_one_wrong_metric_is_enough(tmp_path: Path) -> None:
    bundle = bundle_of(wrong(prediction(), 2.0, "tpot_p50_s"), tmp_path)
    with fake() as engine:
        found = verify(bundle, folder=tmp_path / "found", engine=engine)
    assert not found.holds
    assert list(found.rows.loc[~found.rows["holds"], "metric"]) == ["tpot_p50_s"]


def test_doubts_of_the_prediction_go_with_the_verdict(tmp_path: Path) -> None:
    told = prediction().model_copy(update={"doubts": ("rate8: the client sent late",)})
    with fake() as engine:
        found = verify(bundle_of(told, tmp_path), folder=tmp_path / "found", engine=engine)
    found.write(tmp_path / "found")
    again = Verification.read(tmp_path / "found")
    assert again.doubts == told.doubts
    assert "cannot be trusted: rate8" in again._repr_html_()


def test_it_is_written_and_read(tmp_path: Path) -> None:
    bundle = bundle_of(wrong(prediction(), 2.0), tmp_path)
    with fake() as engine:
        found = verify(bundle, folder=tmp_path / "found", engine=engine)
    found.write(tmp_path / "found")
    again = Verification.read(tmp_path / "found")
    assert again.rows.equals(found.rows)
    assert again.holds is found.holds is False
    assert again.measurement is not None
    assert found.measurement is not None
    assert again.measurement.summary() == found.measurement.summary()
    with pytest.raises(InputError, match="holds no verification"):
        Verification.read(tmp_path)


def test_a_bundle_verified_by_itself_leaves_a_run_with_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(prediction(), tmp_path)
    workdir = tmp_path / "runs"
    vllm_attached = import_module("workbench.measure.vllm_attached")
    monkeypatch.setattr(vllm_attached, "AttachedEngine", lambda url, served_name: fake())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    asked = ["verify", "--bundle", str(bundle), "--url", "http://gateway:8080"]
    done = CliRunner().invoke(app, [*asked, "--workdir", str(workdir)])
    assert done.exit_code == 0, done.output
    (run,) = Tracker(workdir).runs("verify").to_dict("records")
    assert run["holds"] == 1
    measured = Verification.read(workdir / "verify-bundle").measurement
    assert measured is not None
    assert run["traces"] == f"{min(100, int(measured.requests['counted'].sum()))} requests"


def test_a_run_that_cannot_be_trusted_is_no_verdict(tmp_path: Path) -> None:
    bundle = bundle_of(prediction(), tmp_path)
    with limping(1, 2, 3) as engine, pytest.raises(MeasurementError, match="HTTP 503"):
        verify(bundle, folder=tmp_path / "found", engine=engine)
    assert engine.runs == 3


def test_a_bad_run_is_done_again_with_other_draws(tmp_path: Path) -> None:
    bundle = bundle_of(prediction(), tmp_path)
    with limping(1) as engine:
        found = verify(bundle, folder=tmp_path / "found", engine=engine)
    assert found.holds
    assert engine.runs == 2
    first, second = ([r.scheduled_s for r in requests] for requests in engine.seen)
    assert first != second
    assert found.measurement is not None
    assert found.measurement.workload.seed == LOAD.seed + 1


def test_repeats_are_other_draws_and_their_median_counts(tmp_path: Path) -> None:
    bundle = bundle_of(prediction(), tmp_path)
    shares: list[float] = []
    with limping(2) as engine:
        found = verify(
            bundle,
            folder=tmp_path / "found",
            engine=engine,
            repeats=3,
            on_progress=lambda doing, share: shares.append(share),
        )
    assert engine.runs == 4
    names = ("replay", "replay-2", "replay-3")
    replays = [Measurement.read(tmp_path / "found" / name) for name in names]
    assert len({replay.workload.seed for replay in replays}) == 3
    values = sorted(replay.summary()["ttft_p50_s"] for replay in replays)
    assert found.rows.set_index("metric").loc["ttft_p50_s", "measured"] == values[1]
    assert max(shares) == pytest.approx(1.0)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = Estimate(value=1.0, low=1.0, high=1.0, n=1)
    unknown = prediction().model_copy(update={"metrics": {"happiness": one}})
    with fake() as engine, pytest.raises(BundleError, match="happiness"):
        verify(bundle_of(unknown, tmp_path), folder=tmp_path / "found", engine=engine)
    nothing = prediction().model_copy(update={"metrics": {}})
    with pytest.raises(BundleError, match="predicts nothing"):
        verify(bundle_of(nothing, tmp_path), folder=tmp_path / "found", engine=fake())
    for wanted in ({"repeats": 0}, {"attempts": 0}):
        with pytest.raises(InputError, match="must be >= 1"):
            verify(tmp_path / "bundle", folder=tmp_path / "found", engine=fake(), **wanted)


def test_a_prediction_of_nothing_at_all_never_holds(tmp_path: Path) -> None:
    with fake() as engine:
        found = verify(
            bundle_of(wrong(prediction(), 0.0), tmp_path), folder=tmp_path / "f", engine=engine
        )
    assert not found.rows["holds"].any()


def test_a_changed_bundle_starts_nothing(tmp_path: Path) -> None:
    bundle = bundle_of(prediction(), tmp_path)
    told = wrong(prediction(), 10.0).model_dump_json()
    (bundle / "prediction.json").write_text(told)
    engine = fake()
    with engine, pytest.raises(BundleError, match=r"prediction\.json is changed"):
        verify(bundle, folder=tmp_path / "found", engine=engine)
    assert engine.runs == 0
    list_again(bundle)
    with engine, pytest.raises(BundleError, match=r"prediction\.json is not of evidence\.json"):
        verify(bundle, folder=tmp_path / "found", engine=engine)
    assert engine.runs == 0


@pytest.mark.vllm
def test_real_vllm_keeps_what_it_showed_before_and_nothing_else(tmp_path: Path) -> None:
    # A closed loop: no machine is too busy for it, and the tolerance is for one that is.
    load = Workload(
        arrivals=ClosedLoop(concurrency=2, requests=24),
        prompt_tokens=Fixed(tokens=32),
        output_tokens=Fixed(tokens=16),
    )
    engine_args = EngineArgs(max_model_len=256, enforce_eager=True, gpu_memory_utilization=0.3)
    shipped = plan(engine=engine_args)
    before = measure(shipped.variant, load, engine_args=engine_args, folder=tmp_path / "before")
    assert not before.invalid
    shown = before.summary()
    told = Prediction(
        workload=load,
        metrics={
            name: Estimate(value=shown[name], low=shown[name], high=shown[name], n=1)
            for name in ("ttft_p50_s", "tpot_p50_s", "e2e_p50_s", "output_tokens_per_s")
        },
        tolerance_p50=3.0,
    )
    told = wrong(told, 20.0, "e2e_p50_s")
    bundle = export(shipped, tmp_path / "bundle", evidence=evidence(told, of=shipped))
    found = verify(bundle, folder=tmp_path / "found")
    assert not found.holds
    assert list(found.rows.loc[~found.rows["holds"], "metric"]) == ["e2e_p50_s"], found.rows
    assert found.measurement is not None
    assert found.measurement.engine == engine_args
    assert found.measurement.variant.model == str(bundle / "model")
