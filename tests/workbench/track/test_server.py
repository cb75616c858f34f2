"""The same on a real MLflow server, and what is left when it goes away."""

from __future__ import annotations

import os
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

from workbench.runs import log_everything
from workbench.settings import Settings
from workbench.track import Tracker, attempt, list_runs

if TYPE_CHECKING:
    from conftest import MakeStudy, Results

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("server")
    shutil.copy(template, home / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--backend-store-uri": f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination": str(home / "artifacts"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *(w for o in options.items() for w in o)],
        cwd=home,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen[bytes], within_s: float = 120) -> None:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        assert process.poll() is None, "mlflow server died"
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer within {within_s} s")


def test_everything_on_disk_reaches_the_server_once(
    server: str,
    results: Results,
    make_study: MakeStudy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    home = tmp_path / "runs"
    study, folder = make_study(under=home)
    load = results.measurements[-1].renamed("one-load")
    load.write(home / "loads" / "one-load")

    first = log_everything(home, lambda doing, share: None)
    assert (first.added, first.known, first.unreadable) == (5, 0, ())
    second = log_everything(home, lambda doing, share: None)
    assert (second.added, second.known) == (0, 5)
    assert capfd.readouterr() == ("", "")
    assert not (home / "mlflow.db").exists()

    rows = list_runs(home).set_index("name")
    assert rows.loc["batching", "stage"] == "study"
    assert rows.loc["one-load", "experiment"] == "workbench-loads"
    assert rows.loc["parent-batch64", "valid"].startswith("failed: out of memory")
    point = study.measurements[0]
    client = Tracker(home)._client
    run_id = rows.loc[point.name, "run_id"]
    copied = client.download_artifacts(run_id, "measurement/requests.parquet", str(tmp_path))
    assert Path(copied).read_bytes() == (folder / point.name / "requests.parquet").read_bytes()
    found = client.get_metric_history(run_id, "system/gpu_0_utilization_percentage")
    assert len(found) > 50


def test_a_pipeline_run_goes_on_with_the_one_that_is_there(
    server: str, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    ids = set()
    for _ in range(2):
        with Tracker(tmp_path).pipeline_run("on a server", Settings()) as run:
            ids.add((run.run_id, run.variant(results.variants[0])))
    assert len(ids) == 1


def test_requests_of_a_verify_run_reach_the_server(
    server: str, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    replay = next(m for m in results.measurements if m.batch is None)
    tracker = Tracker(tmp_path)
    with tracker.pipeline_run("verified on a server") as run:
        verified = run.verify(replace(results.verification, measurement=replay))
    trail = tracker.experiment_ids["workbench"]
    found = tracker._client.search_traces(locations=[trail], run_id=verified)
    assert len(found) == min(100, len(replay.requests))
    assert {span.name for span in found[0].data.spans} >= {"TTFT", "decode"}
    assert {trace.info.tags["chosen"] for trace in found} == {"slowest", "even"}


def test_a_bad_answer_ends_nothing(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server}/not/here")
    with attempt(tmp_path):
        Tracker(tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert "404" in line
