"""Stores that fail: one line, quickly, and the results stay where they are until they are logged."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workbench.pipeline import Pipeline, Stage
from workbench.progress import OnProgress
from workbench.results import Results
from workbench.runs import log_everything
from workbench.settings import Settings
from workbench.track import UNTRACKED, Tracker, attempt
from workbench.track.reach import reason

if TYPE_CHECKING:
    from conftest import MakeStudy
    from conftest import Results as Made

Broken = Callable[[Path, pytest.MonkeyPatch], AbstractContextManager[str]]


@contextmanager
def locked(
    workdir: Path, patch: pytest.MonkeyPatch, begin: str = "BEGIN EXCLUSIVE"
) -> Iterator[str]:
    """Another process holds the database, and does not end."""
    patch.setattr("workbench.track.reach._BUSY_S", 0.3)
    other = sqlite3.connect(workdir / "mlflow.db", isolation_level=None)
    other.execute(begin)
    try:
        yield "database is locked"
    finally:
        other.close()


@contextmanager
def being_written(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Another process is about to write: it can still be read."""
    with locked(workdir, patch, "BEGIN IMMEDIATE") as why:
        yield why


@contextmanager
def down(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    patch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
    yield "Connection refused"


@contextmanager
def hanging(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Takes the connection and never answers."""
    patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        patch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
        yield "no answer within 1"


class Failing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"<html>boom</html>")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering_500(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    patch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{server.server_port}")
    try:
        yield "HTTP 500"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def of_another_version(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    def version(number: str) -> str:
        with sqlite3.connect(workdir / "mlflow.db") as store:
            before = store.execute("select version_num from alembic_version").fetchone()[0]
            store.execute("update alembic_version set version_num = ?", (number,))
        return str(before)

    before = version("0123456789ab")
    yield "found version 0123456789ab"
    version(before)


@contextmanager
def read_only(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    # By its address: permissions do not stop a superuser.
    uri = f"sqlite:///file:{workdir / 'mlflow.db'}?mode=ro&uri=true"
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.chdir(workdir)  # MLflow makes a directory `file:` where it is
    yield "readonly database"


@contextmanager
def not_a_database(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    kept = workdir.parent / "kept.db"
    shutil.move(workdir / "mlflow.db", kept)
    (workdir / "mlflow.db").write_text("a text of some length\n" * 100)
    yield "not a database"
    shutil.move(kept, workdir / "mlflow.db")


@contextmanager
def unsupported(workdir: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    patch.setenv("MLFLOW_TRACKING_URI", "ftp://mlflow.example")
    yield "unsupported URI"


BROKEN = [
    *(
        locked,
        being_written,
        down,
        hanging,
        answering_500,
        of_another_version,
        read_only,
        not_a_database,
    ),
    unsupported,
]


@pytest.fixture
def a_stage(results: Made, workdir: Path) -> Pipeline:
    """A real stage, of which only the work before the tracking is made up."""

    def work(pipeline: Pipeline, folder: Path, on_progress: OnProgress) -> None:
        for variant in results.variants:
            variant.write(folder / f"{variant.name}.json")
        names = [f"{variant.name}.json" for variant in results.variants]
        (folder / "results.txt").write_text("\n".join(names))
        Results(pipeline).trail("compress")

    stage = Stage("compress", "Compress", "compress", ("seed",), (), work)
    return Pipeline(workdir, Settings(), [stage])


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_stage_goes_on_without_its_store_and_is_logged_later(
    broken: Broken, a_stage: Pipeline, workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    libraries = workdir / "logs" / "libraries.log"
    with pytest.MonkeyPatch.context() as patch, broken(workdir, patch) as why:
        began_s = time.monotonic()
        a_stage.run(["compress"])
        assert time.monotonic() - began_s < 60  # left alone, MLflow tries for minutes
        assert a_stage.is_done("compress")
        said = libraries.read_text() + capfd.readouterr().err
        (line,) = said.splitlines()
        assert why in line
        assert f"`workbench log --workdir '{workdir}'`" in line
        assert "secret" not in line
        assert (workdir / UNTRACKED).read_text().strip() == line

    # The store is well again.
    first = log_everything(workdir, lambda doing, share: None)
    assert (first.added, first.known, first.unreadable) == (5, 0, ())
    names = {path.stem for path in (workdir / "compress").glob("*.json")} - {"done"}
    assert set(Tracker(workdir).runs("compress")["name"]) == names
    assert not (workdir / UNTRACKED).exists()
    second = log_everything(workdir, lambda doing, share: None)
    assert (second.added, second.known) == (0, 5)


def test_a_defect_of_the_tracking_costs_one_line_too(
    workdir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with attempt(workdir):
        raise KeyError("never thought of")
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert "never thought of" in line
    assert str(workdir / "mlflow.db") in line


def test_an_interrupt_is_not_held_up(workdir: Path) -> None:
    with pytest.raises(KeyboardInterrupt), attempt(workdir):
        raise KeyboardInterrupt
    assert not (workdir / UNTRACKED).exists()


def test_export_asks_for_run_ids_and_can_do_without(
    a_stage: Pipeline, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(a_stage)
    assert results.run_ids() == ()
    assert not (workdir / UNTRACKED).exists()
    a_stage.run(["compress"])
    assert len(results.run_ids()) == 5
    with locked(workdir, monkeypatch):
        assert results.run_ids() == ()
    assert (workdir / UNTRACKED).exists()


def test_mlflow_is_given_seconds_unless_the_user_chose_otherwise(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    for name in chosen:
        monkeypatch.delenv(name, raising=False)
    Tracker(workdir)
    timeout_s, retries = (int(os.environ[name]) for name in chosen)
    assert timeout_s * (retries + 1) <= 15
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Tracker(workdir)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


@pytest.mark.parametrize(
    ("said", "reads"),
    [
        (
            "API request to http://h:1/api failed with exception HTTPConnectionPool(host='h',"
            " port=1): Max retries exceeded with url: /api (Caused by NewConnectionError("
            "\"HTTPConnection(host='h', port=1): Failed to establish a new connection:"
            ' [Errno 111] Connection refused"))',
            "Connection refused",
        ),
        ("HTTPConnectionPool(host='h'): Read timed out. (read timeout=5)", "no answer within 5 s"),
        ("(Caused by ResponseError('too many 503 error responses'))", "it answers with HTTP 503"),
        (
            "(sqlite3.OperationalError) database is locked\n[SQL: BEGIN IMMEDIATE]\n(Background"
            " on this error at: https://sqlalche.me/e/20/e3q8)",
            "database is locked",
        ),
        ("", "RuntimeError"),
        ("no route to https://me:secret@mlflow.example.", "no route to https://mlflow.example"),
        ("x" * 5000, "x" * 239 + "…"),
    ],
)
def test_the_reason_is_short(said: str, reads: str) -> None:
    assert reason(RuntimeError(said)) == reads


def test_what_a_killed_process_left_half_done_is_completed(
    workdir: Path, make_study: MakeStudy
) -> None:
    result, folder = make_study(under=workdir, points=3)
    # Killed after the first point is whole and the second has its metrics.
    code = f"""
import os
from pathlib import Path
from workbench.measure.study import read_study
from workbench.track import Tracker
home, folder = Path({str(workdir)!r}), Path({str(folder)!r})
copy, copied = Tracker._copy, []
def die(*arguments):
    copied.append(1)
    os._exit(9) if len(copied) == 2 else copy(*arguments)
Tracker._copy = die
Tracker(home).study(read_study(folder), folder)
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 9
    left = Tracker(workdir)
    left._experiment("workbench-batching")
    before = {run.info.run_name: run.info.status for run in left._search("tags.stage != ''")}
    assert sorted(before.values()) == ["FINISHED", "RUNNING", "RUNNING"]

    logged = log_everything(workdir, lambda doing, share: None)
    # There were the parent and the first point.
    assert (logged.added, logged.known) == (3, 2)
    after = sorted((run.info.run_name, run.info.status) for run in left._search("tags.stage != ''"))
    whole = [("batching", "FINISHED"), *((m.name, "FINISHED") for m in result.measurements)]
    assert after == sorted([*whole, ("parent-batch64", "FAILED")])


def test_a_store_that_fails_half_way_is_completed_later(
    workdir: Path, make_study: MakeStudy, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    result, folder = make_study(under=workdir)

    def full(*_: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database or disk is full [SQL: x]")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "_copy", full)
        with attempt(workdir):
            Tracker(workdir).study(result, folder)
    (line,) = capfd.readouterr().err.splitlines()
    assert "database or disk is full" in line
    logged = log_everything(workdir, lambda doing, share: None)
    assert (logged.added, logged.known) == (3, 1)
    assert log_everything(workdir, lambda doing, share: None).added == 0
