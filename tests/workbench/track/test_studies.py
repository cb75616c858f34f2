"""A study in MLflow: its experiment, its points, what failed, and on what it was measured."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from workbench.track import Tracker
from workbench.track.origin import commit_of, here
from workbench.track.system import samples

if TYPE_CHECKING:
    from conftest import MakeStudy, Results


def children(tracker: Tracker, experiment: str, parent: str) -> dict[str, Any]:
    """Runs nested under a parent, by name, as `mlflow ui` shows them."""
    client = tracker._client
    wanted = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([wanted], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run for run in found}


def test_a_study_is_an_experiment_with_a_run_per_point(
    tracker: Tracker, make_study: MakeStudy, tmp_path: Path
) -> None:
    result, folder = make_study()
    parent = tracker.study(result, folder, folder / "figure.html")
    run = tracker._client.get_run(parent)
    assert (run.info.run_name, run.info.status) == ("batching", "FINISHED")
    assert run.data.tags["question"] == "Does a larger batch pay?"
    assert run.data.params["engine_grid.max_num_seqs"] == "[8, 32]"
    assert run.data.metrics == {"points": 2, "failures": 1}

    points = children(tracker, "workbench-batching", parent)
    assert set(points) == {m.name for m in result.measurements} | {"parent-batch64"}
    first = result.measurements[0]
    point = points[first.name]
    for metric in ("output_tokens_per_s", "ttft_p99_s", "tpot_p50_s"):
        assert point.data.metrics[metric] == pytest.approx(first.summary()[metric])
    assert point.data.params["study"] == "batching"
    assert point.data.params["batch"] == str(first.batch)

    client = tracker._client
    assert [file.path for file in client.list_artifacts(parent)] == ["figure.html", "study.json"]
    copied = client.download_artifacts(point.info.run_id, "measurement", str(tmp_path))
    for name in ("measurement.json", "requests.parquet", "telemetry.parquet"):
        assert (Path(copied) / name).read_bytes() == (folder / first.name / name).read_bytes()


def test_a_point_that_failed_says_why(tracker: Tracker, make_study: MakeStudy) -> None:
    result, folder = make_study()
    parent = tracker.study(result, folder)
    failure = children(tracker, "workbench-batching", parent)["parent-batch64"]
    assert failure.info.status == "FAILED"
    assert failure.data.tags["cause"] == "out of memory: 3 GiB of KV cache do not fit"
    assert failure.data.params["batch"] == "64"
    assert failure.data.metrics == {}


def test_a_study_that_goes_on_adds_only_what_is_new(workdir: Path, make_study: MakeStudy) -> None:
    parents, added = set(), []
    for points in (2, 2, 3):
        tracker = Tracker(workdir)
        parents.add(tracker.study(*make_study(points=points)))
        added.append((tracker.added, tracker.known))
    assert len(parents) == 1
    assert added == [(4, 0), (0, 4), (1, 4)]


def test_a_point_that_failed_after_it_was_measured_is_only_a_failure(
    tracker: Tracker, make_study: MakeStudy
) -> None:
    result, folder = make_study()
    failure = result.failures[0].model_copy(update={"name": result.measurements[0].name})
    parent = tracker.study(replace(result, failures=[failure]), folder)
    points = children(tracker, "workbench-batching", parent)
    assert [run.info.status for name, run in points.items() if name == failure.name] == ["FAILED"]
    assert len(points) == 2


def test_a_study_may_be_called_like_another_experiment(
    tracker: Tracker, make_study: MakeStudy
) -> None:
    tracker.study(*make_study(name="variants"))
    client = tracker._client
    assert client.search_runs([tracker.experiment_ids["workbench-variants"]]) == []
    assert client.get_experiment_by_name("workbench-study-variants") is not None


def test_what_was_deleted_in_the_ui_can_be_logged_again(
    workdir: Path, make_study: MakeStudy
) -> None:
    first = Tracker(workdir)
    first.study(*make_study())
    first._client.delete_experiment(first.experiment_ids["workbench-batching"])
    again = Tracker(workdir)
    again.study(*make_study())
    home = again._client.get_experiment_by_name("workbench-batching")
    assert home.lifecycle_stage == "active"


def test_system_metrics_stand_on_the_wall_clock_under_mlflows_names(
    tracker: Tracker, make_study: MakeStudy
) -> None:
    result, folder = make_study(points=1)
    parent = tracker.study(result, folder)
    run = children(tracker, "workbench-batching", parent)[result.measurements[0].name]
    expected = {
        "system/gpu_0_utilization_percentage": 50,
        "system/gpu_0_memory_usage_megabytes": 2000,
        "system/gpu_1_memory_usage_megabytes": 4000,
        "system/gpu_0_power_usage_watts": 300,
        "system/gpu_1_temperature_celsius": 61,
        "system/cpu_utilization_percentage": 25,
        "system/system_memory_usage_megabytes": 8000,
    }
    for name, value in expected.items():
        assert run.data.metrics[name] == pytest.approx(value), name
    assert "system/gpu_1_power_usage_watts" not in run.data.metrics

    history = tracker._client.get_metric_history(run.info.run_id, "system/gpu_0_power_usage_watts")
    assert 50 < len(history) <= 100
    stamps_ms = [sample.timestamp for sample in history]
    begin_ms = datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp() * 1000
    assert stamps_ms == sorted(stamps_ms)
    assert 0 <= stamps_ms[0] - begin_ms < 1000
    assert 48_000 < stamps_ms[-1] - begin_ms < 50_000


def test_many_gpus_do_not_flood_the_store(results: Results, two_gpus: pd.DataFrame) -> None:
    one = two_gpus.query("gpu == 0")
    many = pd.concat([one.assign(gpu=gpu) for gpu in range(32)])
    found = samples(replace(results.measurements[0], telemetry=many))
    assert {name.split("_")[1] for name, _, _ in found} == {str(gpu) for gpu in range(32)}
    assert 750 < len(found) <= 1500


def test_a_measurement_without_telemetry_has_no_system_metrics(results: Results) -> None:
    assert samples(results.measurements[0]) == []


def test_system_metrics_have_mlflows_own_names() -> None:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    from workbench.track.system import _OF_HOST

    monitor = CPUMonitor()
    monitor.collect_metrics()
    assert {name for name, _ in _OF_HOST.values()} <= set(monitor.metrics)


def test_a_run_began_when_the_measurement_did(tracker: Tracker, make_study: MakeStudy) -> None:
    result, folder = make_study(points=1)
    parent = tracker.study(result, folder)
    first = result.measurements[0]
    info = children(tracker, "workbench-batching", parent)[first.name].info
    assert info.start_time == datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp() * 1000
    took_s = (info.end_time - info.start_time) / 1000
    assert took_s == pytest.approx(first.requests["end_s"].max(), abs=0.002)


def test_every_run_says_with_what_it_was_made(tracker: Tracker, make_study: MakeStudy) -> None:
    result, folder = make_study(points=1)
    parent = tracker.study(result, folder)
    measured = children(tracker, "workbench-batching", parent)[result.measurements[0].name]
    # Measured elsewhere: not this machine's.
    assert measured.data.tags["hardware"] == "AMD EPYC, 2 threads"
    assert measured.data.tags["gpu_count"] == "0"
    assert measured.data.tags["version.vllm"] == "0.32.0"
    every = tracker._client.search_runs(list(tracker.experiment_ids.values()))
    assert len(every) == 3
    for run in every:
        assert {"hardware", "gpu_count", "python", "version.torch"} <= set(run.data.tags)
        code = {"git.commit", "git.dirty"} if "git.commit" in here() else {"version.llm-workbench"}
        assert code <= set(run.data.tags)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_a_tracked_file_and_says_whether_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("1\n")
    assert commit_of(file) == {}
    git(tmp_path, "init")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "-m", "one")
    clean = commit_of(file)
    assert (
        clean["git.commit"]
        == clean["mlflow.source.git.commit"]
        == git(tmp_path, "rev-parse", "HEAD")
    )
    assert clean["git.dirty"] == "no"
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    file.write_text("2\n")
    assert commit_of(file) == clean | {"git.dirty": "yes"}
    installed = tmp_path / "site-packages" / "module.py"
    installed.parent.mkdir()
    installed.write_text("3\n")
    assert commit_of(installed) == {}
