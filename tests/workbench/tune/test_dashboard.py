"""The real optuna-dashboard opens what a search left."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.workbench.tune.stub import search

pytestmark = pytest.mark.slow
PROGRAM = Path(sys.executable).with_name("optuna-dashboard")


@contextmanager
def dashboard(storage: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PROGRAM), storage, "--port", str(port), "--server", "wsgiref"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def got(url: str, patience_s: float = 90.0) -> str:
    """What the server says, once it is there."""
    until = time.monotonic() + patience_s
    while True:
        try:
            with urlopen(url, timeout=patience_s) as answer:
                assert answer.status == 200
                found: str = answer.read().decode()
                return found
        except URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.3)


@pytest.mark.skipif(not PROGRAM.exists(), reason="needs optuna-dashboard")
@pytest.mark.parametrize(("file", "url"), [("study.db", "sqlite:///{}"), ("study.log", "{}")])
def test_the_dashboard_shows_the_trials(file: str, url: str, tmp_path: Path) -> None:
    tuning = search(tmp_path, trials=8, neighbour_seeds=0, storage=tmp_path / file)
    with dashboard(url.format(tmp_path / file)) as at:
        page = got(f"{at}/dashboard")
        assert "<title>Optuna Dashboard</title>" in page
        (study,) = json.loads(got(f"{at}/api/studies"))["study_summaries"]
        assert study["directions"] == ["minimize"]
        shown: dict[str, Any] = json.loads(got(f"{at}/api/studies/{study['study_id']}"))
    hours = [trial["values"][0] for trial in shown["trials"]]
    assert hours == pytest.approx(tuning.trials["gpu_hours"].tolist())
    assert {trial["state"] for trial in shown["trials"]} == {"Complete"}
    metrics = [
        parameter["param_external_value"]
        for trial in shown["trials"]
        for parameter in trial["params"]
        if parameter["name"] == "metrics"
    ]
    assert metrics == tuning.trials["metric"].tolist()
