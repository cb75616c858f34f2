"""How the MLflow store is reached: quickly or not at all, and what is said where it fails.

Results are on disk before they are tracked. So a store that is locked, read-only, of another schema
or does not answer is no reason to stop: see `attempt`.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import InputError, WorkbenchError

if TYPE_CHECKING:
    from mlflow import MlflowClient

UNTRACKED = "untracked.txt"
"""In the work directory: why results are not all in MLflow. `workbench log` takes it away."""

_BUSY_S = 5.0
_LONGEST_REASON = 240
# MLflow's own: two minutes of silence, seven retries.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_SILENCE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_LOUD = ("mlflow", "alembic", "urllib3", "databricks")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def chosen_uri(workdir: Path, uri: str | None = None) -> str:
    """The store: the one given, else MLFLOW_TRACKING_URI, else mlflow.db in the work directory."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir / 'mlflow.db'}"


def is_database(uri: str) -> bool:
    """Whether this process writes the store itself, so that it has to say where artifacts lie."""
    return uri.split(":", 1)[0].split("+", 1)[0] in _DATABASES


def connect(uri: str, *, write: bool = True) -> MlflowClient:
    """A client whose store answered; an SQLite database is made where it is missing.

    An HTTP server has five seconds and one retry, where the environment does not say otherwise.

    Raises:  what MLflow, its database or its connection raise (see `reached`).
    """
    with _silent():
        from mlflow import MlflowClient

        _check_unlocked(uri, write=write)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def reached(uri: str) -> Iterator[None]:
    """Turn errors of the store into one line, and keep its libraries quiet.

    Raises:  InputError: the store failed; says which, and why.
    """
    try:
        with _silent():
            yield
    except _failures() as error:
        raise InputError(
            f"the MLflow store {_without_password(uri)} failed: {reason(error)}",
            remedy="Mend it, or set MLFLOW_TRACKING_URI to another, and repeat the command.",
        ) from error


@contextmanager
def attempt(workdir: Path) -> Iterator[None]:
    """Track results that are on disk; whatever fails here ends nothing.

    One line on standard error says why and how to make up for it. It is kept in `untracked.txt` of
    the work directory as well, for whoever has the terminal.
    """
    try:
        with _silent():
            yield
    except Exception as error:  # a defect of the tracking must not cost a measurement either
        why = error.problem if isinstance(error, WorkbenchError) else reason(error)
        store = _without_password(chosen_uri(workdir))
        line = (
            f"workbench: results are on disk, but not all in the MLflow store {store}: {why}."
            f" Add them with `{shlex.join(['workbench', 'log', '--workdir', str(workdir)])}`."
        )
        with suppress(OSError):
            (workdir / UNTRACKED).write_text(line + "\n")
        print(line, file=sys.stderr)


def reason(error: BaseException) -> str:
    """Why the store failed, in one short line.

    HTTP errors arrive as the text of an error that holds the text of another.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern, said in (
        (r"\(read timeout=([\d.]+)\)", r"no answer within \1 s"),
        (r"\(connect timeout=([\d.]+)\)", r"no connection within \1 s"),
        (r"\[Errno -?\d+\] ([^'\")\]]+)", r"\1"),
        (r"too many (\d+) error responses", r"it answers with HTTP \1"),
        (r"\(\S+Error\) (.+?) \[SQL:", r"\1"),
        (r"\(\S+Error\) (.+?) \(Background on", r"\1"),
    ):
        found = re.search(pattern, text)
        if found:
            text = found.expand(said)
            break
    text = _without_password(text).rstrip(". ")
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)


def _failures() -> tuple[type[Exception], ...]:
    """What MLflow lets pass: its own errors, those of its database and of its connection."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, CommandError, OSError, ImportError


def _check_unlocked(uri: str, *, write: bool) -> None:
    """Find out within seconds that an SQLite database is held by another process, or is none.

    MLflow itself waits twenty seconds at every statement, and tries ten times to open what is none.
    """
    if not uri.startswith("sqlite"):
        return
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.pool import NullPool

    file = make_url(uri).database or ""
    if not file.startswith("file:") and not Path(file).is_file():
        return
    engine = create_engine(uri, connect_args={"timeout": _BUSY_S}, poolclass=NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "SELECT * FROM sqlite_master")
        connection.rollback()


@contextmanager
def _silent() -> Iterator[None]:
    """Making a database is some forty lines of log, and every failure a traceback of its own."""
    for name, value in (_PATIENCE | _SILENCE).items():
        os.environ.setdefault(name, value)
    # It sets its own log level when it is imported.
    import mlflow  # noqa: F401

    levels = {name: logging.getLogger(name).level for name in _LOUD}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
