"""What lands in a real SQLite store, and that it lands there once."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workbench.settings import Settings
from workbench.track import PipelineRun, Tracker

if TYPE_CHECKING:
    from conftest import Results


def log_all(run: PipelineRun, results: Results, bundle: Path) -> None:
    for variant in results.variants:
        run.variant(variant)
    for measurement in results.measurements[:20]:
        run.measurement(measurement, bundle)
    run.sweeps(results.measurements, usd_per_hour=2.5)
    for model in results.latency_models:
        run.fit(model)
    run.tune(results.tuning)
    exported = run.export(bundle, results.tuning.winner)
    run.register(
        exported,
        results.tuning.winner,
        results.latency_models[0],
        results.tuning.prediction.workload,
    )
    replay = next(m for m in results.measurements if m.batch is None)
    run.verify(replace(results.verification, measurement=replay))
    run.metrics({"gpu_hours": 61.0})
    run.artifact(bundle / "plan.json")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "winner"
    (folder / "manifests").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    (folder / "manifests" / "hpa.yaml").write_text("kind: HorizontalPodAutoscaler")
    return folder


@pytest.fixture(scope="module")
def tracked(results: Results, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A store with a whole pipeline in it."""
    tracker = Tracker(tmp_path_factory.mktemp("work") / "runs")
    with tracker.pipeline_run("demo", Settings()) as run:
        log_all(run, results, bundle)
    return tracker


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """A second store: making one takes seconds, so that tests share it under names of their own."""
    return Tracker(tmp_path_factory.mktemp("work") / "my runs")


def test_a_whole_demo_is_tracked(tracked: Tracker) -> None:
    assert len(tracked.runs()) > 30


def test_every_stage_is_a_child_of_the_pipeline_run(tracked: Tracker) -> None:
    runs = tracked.runs()
    parent = runs[runs["stage"] == "pipeline"]
    assert list(parent["name"]) == ["demo"]
    assert parent.iloc[0]["trials"] == str(Settings().trials)
    children = runs[runs["stage"] != "pipeline"]
    assert set(children["parent_run_id"]) == set(parent["run_id"])
    expected = {"compress", "measure", "sweep", "point", "fit", "candidate", "tune"}
    expected |= {"export", "verify"}
    assert set(children["stage"]) == expected


def test_what_is_to_be_compared_lies_flat(tracked: Tracker) -> None:
    tracker = tracked
    flat = (("variants", "sweep"), ("points", "point"), ("autoscalers", "candidate"))
    for experiment, stage in flat:
        found = tracker._client.search_runs([tracker.experiment_ids[f"workbench-{experiment}"]])
        assert {run.data.tags["stage"] for run in found} == {stage}
        assert not any("mlflow.parentRunId" in run.data.tags for run in found)
        assert not any("interval" in name for run in found for name in run.data.metrics)
        pages = tracker.compare_urls()
        if experiment == "points":
            for run in found:
                assert run.info.run_id in pages[f"workbench-points {run.data.params['mode']}"]
        else:
            page = pages[f"workbench-{experiment}"]
            assert f"/experiments/{tracker.experiment_ids[f'workbench-{experiment}']}/" in page
    trail = tracker._client.search_runs([tracker.experiment_ids["workbench"]])
    assert sum("mlflow.parentRunId" not in run.data.tags for run in trail) == 1


def test_variants_share_metric_names(tracked: Tracker, results: Results) -> None:
    measured = tracked.runs("measure")
    assert not measured[["ttft_p99_s", "tpot_p50_s", "output_tokens_per_s"]].isna().any().any()
    first = results.measurements[0]
    row = measured[measured["name"] == first.name].iloc[0]
    assert row["output_tokens_per_s"] == pytest.approx(first.summary()["output_tokens_per_s"])
    assert (row["variant"], row["mode"], row["batch"]) == ("parent", "offline", "1")
    assert row["hardware"] == first.environment.hardware
    assert row["version.vllm"] == first.environment.versions["vllm"]


def test_baselines_and_winner_are_comparable(tracked: Tracker) -> None:
    runs = tracked.runs()
    compared = runs[runs["stage"] == "candidate"].set_index("candidate")
    assert compared.loc["winner", "gpu_hours"] == 61.0
    assert compared.loc["static-peak", "gpu_hours"] == 98.0
    assert compared.loc["article-hpa", "keeps_slo"] == 0
    search = runs[runs["stage"] == "tune"].iloc[0]
    assert search["interval/gpu_hours_low"] < 61.0 < search["interval/gpu_hours_high"]


def test_sweeps_are_curves_over_the_batch_size(tracked: Tracker, results: Results) -> None:
    tracker = tracked
    sweep = tracker.runs("sweep").set_index("name").loc["int8 offline"]
    history = tracker._client.get_metric_history(sweep["run_id"], "batch/output_tokens_per_s")
    assert [point.step for point in history] == [1, 2, 4, 8, 16, 32]
    repeats = [
        m.summary()["output_tokens_per_s"]
        for m in results.measurements
        if m.variant.name == "int8" and m.batch == 8
    ]
    assert history[3].value == pytest.approx(sum(repeats) / len(repeats))


def test_the_pipeline_run_links_to_the_pages_that_compare(tracked: Tracker) -> None:
    run_id = tracked.runs("pipeline").iloc[0]["run_id"]
    note = tracked._client.get_run(run_id).data.tags["mlflow.note.content"]
    assert "[workbench-points offline](#/compare-runs?runs=" in note
    assert "[workbench-autoscalers](#/experiments/" in note


def test_points_say_variant_load_and_cost(tracked: Tracker, results: Results) -> None:
    points = tracked.runs("point").set_index("name")
    one = points.loc["int8 batch 8"]
    own = [m for m in results.measurements if m.variant.name == "int8" and m.batch == 8]
    costs = [m.summary(usd_per_hour=2.5)["usd_per_million_tokens"] for m in own]
    assert one["usd_per_million_tokens"] == pytest.approx(sum(costs) / len(costs))
    assert (one["variant"], one["batch"]) == ("int8", "8")
    served = points[points["rate_rps"].notna()]
    assert len(served) > 0
    assert served["batch"].isna().all()


def test_the_exported_plan_is_a_model_that_predicts(tracked: Tracker, results: Results) -> None:
    import mlflow
    import pandas as pd

    export = tracked.runs("export").iloc[0]
    versions = tracked._client.search_model_versions("name = 'workbench-plan'")
    assert [(str(v.version), v.run_id) for v in versions] == [("1", export["run_id"])]
    folder = tracked._client.download_artifacts(export["run_id"], "model")
    model = mlflow.pyfunc.load_model(folder)
    assert model.metadata.signature.inputs.input_names() == ["rate_rps"]
    found = model.predict(pd.DataFrame({"rate_rps": [2.0, 40.0]}))
    assert list(found) == model.metadata.signature.outputs.input_names()
    plan = results.tuning.winner
    assert found["replicas"].between(plan.hpa.min_replicas, plan.hpa.max_replicas).all()
    assert (found["usd_per_hour"] == found["replicas"] * plan.gpu_usd_per_hour).all()
    assert found["replicas"].is_monotonic_increasing
    assert found["usd_per_million_output_tokens"].is_monotonic_decreasing


def test_artifacts_hold_the_files(tracked: Tracker, tmp_path: Path) -> None:
    tracker = tracked
    client = tracker._client
    export = tracker.runs("export").iloc[0]
    folder = Path(client.download_artifacts(export["run_id"], "bundle", str(tmp_path)))
    assert (folder / "manifests" / "hpa.yaml").read_text() == "kind: HorizontalPodAutoscaler"
    winner = tracker.runs("tune").iloc[0]
    plan = Path(client.download_artifacts(winner["run_id"], "plan.json", str(tmp_path)))
    assert json.loads(plan.read_text())["warm_spares"] == 1


def test_a_resumed_run_adds_nothing_twice(tracked: Tracker, results: Results, bundle: Path) -> None:
    tracker = tracked
    before = tracker.runs()
    home = Path(tracker.ui_uri.removeprefix("sqlite:///")).parent
    with Tracker(home).pipeline_run("demo", Settings()) as run:
        log_all(run, results, bundle)
    assert set(tracker.runs()["run_id"]) == set(before["run_id"])


def test_other_results_and_settings_are_other_runs(results: Results, spare: Tracker) -> None:
    tracker = spare
    variant = results.variants[0]
    with tracker.pipeline_run("demo", {"seed": 0}) as run:
        first = run.variant(variant)
        assert run.variant(variant) == first
        assert run.variant(variant.model_copy(update={"size_bytes": 1})) != first
    with tracker.pipeline_run("demo", {"seed": 1}) as other:
        assert other.run_id != run.run_id
        assert other.variant(variant) != first


def test_what_a_killed_process_left_is_logged_again(results: Results, spare: Tracker) -> None:
    tracker = spare
    with tracker.pipeline_run("killed") as run:
        cut_off = run.variant(results.variants[0])
        tracker._client.update_run(cut_off, status="RUNNING")
        again = run.variant(results.variants[0])
        assert again != cut_off
        found = tracker.runs("compress")
        assert list(found[found["parent_run_id"] == run.run_id]["run_id"]) == [again]


def test_what_was_forced_is_tagged(results: Results, spare: Tracker) -> None:
    doubts = ("rate8: the client sent late",)
    model = results.latency_models[0].model_copy(update={"doubts": doubts})
    told = results.tuning.prediction.model_copy(update={"doubts": doubts})
    with spare.pipeline_run("forced") as run:
        run.fit(model)
        run.tune(replace(results.tuning, prediction=told))
        run.verify(replace(results.verification, doubts=doubts))
    client = spare._client
    found = client.search_runs(list(spare.experiment_ids.values()), "tags.doubts LIKE 'rate8%'")
    assert sorted(one.data.tags["stage"] for one in found) == ["candidate", "fit", "tune", "verify"]


def test_a_failed_pipeline_says_so_and_can_go_on(spare: Tracker) -> None:
    tracker = spare
    with pytest.raises(RuntimeError, match="out of memory"), tracker.pipeline_run("fails") as run:
        raise RuntimeError("out of memory")
    assert tracker._client.get_run(run.run_id).info.status == "FAILED"
    with tracker.pipeline_run("fails") as again:
        assert again.run_id == run.run_id
    assert tracker._client.get_run(run.run_id).info.status == "FINISHED"


def test_weights_are_listed_and_not_copied(
    results: Results,
    bundle: Path,
    spare: Tracker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workbench.track.store._LARGEST_ARTIFACT_BYTES", 10)
    tracker = spare
    with tracker.pipeline_run("weights") as run:
        exported = run.export(bundle, results.tuning.winner)
    client = tracker._client
    assert [f.path for f in client.list_artifacts(exported, "bundle")] == ["bundle/plan.json"]
    listed = Path(client.download_artifacts(exported, "files.json", str(tmp_path)))
    assert "manifests/hpa.yaml" in json.loads(listed.read_text())


def test_nothing_is_printed_and_nothing_written_elsewhere(tmp_path: Path) -> None:
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    code = (
        "from pathlib import Path; from workbench.track import Tracker\n"
        "tracker = Tracker(Path('../runs'))\n"
        "with tracker.pipeline_run('demo'): pass\n"
        "import os; assert os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'"
    )
    root = str(Path(__file__).parents[3])
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**kept, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]


def test_ui_command_can_be_pasted(spare: Tracker) -> None:
    words = shlex.split(spare.ui_command())
    assert words[:3] == ["mlflow", "ui", "--backend-store-uri"]
    assert Path(words[3].removeprefix("sqlite:///")).is_file()
    assert "my runs" in words[3]


def answer(url: str, process: subprocess.Popen[bytes], within_s: float = 300) -> str:
    """What a server that is starting says, as soon as it says something."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "mlflow ui died"
        try:
            return urllib.request.urlopen(url, timeout=10).read().decode()
        except urllib.error.URLError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within {within_s} s")


@pytest.fixture(scope="module")
def ui(tracked: Tracker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real `mlflow ui` on the store that holds a whole pipeline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.split(tracked.ui_command())[1:]
    options = ["--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, *options],
        cwd=tmp_path_factory.mktemp("ui"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        here = f"http://127.0.0.1:{port}"
        assert "<title>MLflow</title>" in answer(here, process)
        yield here
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_the_real_ui_serves_what_was_tracked(tracked: Tracker, ui: str) -> None:
    request = urllib.request.Request(
        f"{ui}/api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": list(tracked.experiment_ids.values())}).encode(),
        headers={"Content-Type": "application/json"},
    )
    runs = json.load(urllib.request.urlopen(request, timeout=30))["runs"]
    assert len(runs) == len(tracked.runs())


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_pages_compare_variants_loads_and_costs(tracked: Tracker, ui: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    pages = tracked.compare_urls(ui)
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1300})
        page.set_default_timeout(120_000)
        page.goto(pages["workbench-autoscalers"])
        for name in ("winner", "static-peak", "article-hpa"):
            page.get_by_role("link", name=name, exact=True).first.wait_for()
        page.get_by_text("gpu_hours", exact=True).first.wait_for()
        page.goto(pages["workbench-points offline"])
        plot = page.locator(".js-plotly-plot").first
        for axis in ("variant", "batch"):  # chosen by the page itself
            plot.get_by_text(axis, exact=True).first.wait_for()
        page.get_by_role("combobox").last.click(force=True)
        page.keyboard.type("usd_per_million")
        page.keyboard.press("Enter")
        plot.get_by_text("usd_per_million_tokens", exact=True).first.wait_for()
        page.goto(f"{ui}/#/models/workbench-plan/versions/1")
        page.get_by_text("Inputs (1)").wait_for()
        page.get_by_text("Outputs (10)").wait_for()
        trail = tracked.experiment_ids["workbench"]
        page.goto(f"{ui}/#/experiments/{trail}/traces?startTimeLabel=ALL")
        page.get_by_text("64 tokens, 64 asked for").first.wait_for()
        page.get_by_role("button", name="Got it").click()
        page.get_by_text("64 tokens, 64 asked for").first.click()
        for span in ("TTFT", "decode"):
            page.get_by_text(span, exact=True).first.wait_for()
        browser.close()
