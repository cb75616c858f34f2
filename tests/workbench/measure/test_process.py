"""A server process never outlives the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.errors import EngineError, InputError
from serving.plan import Variant
from workbench.measure import ServerEngine, process
from workbench.measure.failure import explain, telling_line
from workbench.measure.process import ChildGroup, free_port, port_in_use

from .support import ENGINE

# A child with a child of its own that ignores being asked to end.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
print(child.pid, flush=True)
time.sleep(600)
"""
WAIT_S = 30


def grandchild(log: Path, parent: psutil.Process) -> psutil.Process:
    """The grandchild's process, once it has been announced."""
    while parent.is_running() and not log.read_text().endswith("\n"):
        os.sched_yield()
    return psutil.Process(int(log.read_text()))


def test_the_whole_group_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    log = tmp_path / "log"
    group = ChildGroup([sys.executable, "-c", STUBBORN], os.environ, log)
    below = grandchild(log, psutil.Process(group.pid))
    assert group.ended() is None
    group.kill()
    below.wait(WAIT_S)
    assert not psutil.pid_exists(group.pid)
    assert group.ended() == "killed by SIGKILL"
    group.kill()  # once more is fine


def test_kill_9_of_the_parent_takes_everything_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    code = f"""
import os, sys, time
from pathlib import Path
from workbench.measure.process import ChildGroup
group = ChildGroup([sys.executable, "-c", {STUBBORN!r}], os.environ, Path({str(log)!r}))
print(group.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    below = grandchild(log, child)
    parent.send_signal(signal.SIGKILL)
    parent.wait(WAIT_S)
    for ended in (child, below):
        psutil.wait_procs([ended], timeout=WAIT_S)
        assert not ended.is_running() or ended.status() == psutil.STATUS_ZOMBIE


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_in_use(port)
        engine = ServerEngine(Variant(name="v", model="m"), ENGINE, folder=tmp_path, port=port)
        with pytest.raises(InputError, match=rf"port\(={port}\) is in use"), engine:
            raise AssertionError
    assert engine.pid is None
    assert not port_in_use(free_port())


LOGS = {
    "memory": (
        "INFO 11-23 [core.py:1] loading\n"
        "(EngineCore pid=3451) ERROR 11-23 15:09:01 [core.py:1100] ValueError: Available memory on"
        " node 0 (0.5/9.0 GiB) on startup is less than desired CPU memory utilization\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s)\n",
        "ValueError: Available memory on node 0",
        "Free memory",
    ),
    "model": (
        "Traceback (most recent call last):\n"
        "OSError: nothing/there is not a local folder and is not a valid model identifier\n",
        "OSError: nothing/there is not a local folder",
        "Check the model's path",
    ),
    "port": (
        "OSError: [Errno 98] Address already in use\n",
        "OSError: [Errno 98]",
        "Choose another port",
    ),
    "argument": (
        "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --nonsense\n",
        "unrecognized arguments: --nonsense",
        "does not know that argument",
    ),
    "pydantic": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, Invalid repository ID or local directory specified: 'x'. [type=value_error]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n",
        "Invalid repository ID or local directory specified: 'x'",
        "Check the model's path",
    ),
    "silence": ("", "it said nothing", "Its log"),
}


@pytest.mark.parametrize("case", LOGS)
def test_the_cause_is_told_in_one_line_with_its_remedy(case: str) -> None:
    text, cause, remedy = LOGS[case]
    error = explain(text, Variant(name="v", model="m"), Path("/x/server.log"), " (exit status 1)")
    assert isinstance(error, EngineError)
    assert cause in error.problem
    assert "pid=" not in error.problem
    assert remedy in error.remedy
    assert "/x/server.log" in error.remedy
    assert "\n" not in str(error)


def test_the_last_telling_line_wins() -> None:
    assert telling_line("KeyError: 'a'\nValueError: b\nshutting down") == "ValueError: b"


@pytest.mark.vllm
def test_a_model_that_is_none_is_an_engine_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    engine = ServerEngine(
        Variant(name="v", model=str(tmp_path / "empty")), ENGINE, folder=tmp_path / "logs"
    )
    with pytest.raises(EngineError, match="Check the model's path"), engine:
        raise AssertionError
    assert engine.pid is None
    assert engine.log.read_text()
