"""A function in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from serving.errors import EngineError, InputError
from workbench.apart import Child, Link


def count(link: Link, n: int) -> None:
    for i in range(n):
        link.send(i)


def echo(link: Link) -> None:
    link.send(f"{link.receive()} from {os.getpid()}")


def refuse(link: Link) -> None:
    raise InputError("value(=3) is odd", remedy="Take 4.")


def stumble(link: Link) -> None:
    raise KeyError("nothing of the sort")


def be_killed(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_forever(link: Link) -> None:
    link.send(os.getpid())
    time.sleep(600)


def variable(link: Link, name: str) -> None:
    link.send(os.environ.get(name))


def test_messages_come_in_order_until_the_function_returns() -> None:
    with Child(count, 5) as child:
        assert list(child) == [0, 1, 2, 3, 4]


def test_it_hears_what_it_is_told_in_another_process() -> None:
    with Child(echo) as child:
        child.send("word")
        ended, said = child.receive()
    assert not ended
    assert said.startswith("word from ")
    assert not said.endswith(f" {os.getpid()}")


def test_errors_cross_whole() -> None:
    with Child(refuse) as child, pytest.raises(InputError, match="odd") as caught:
        list(child)
    assert caught.value.remedy == "Take 4."
    with Child(stumble) as child, pytest.raises(RuntimeError, match="KeyError: 'nothing"):
        list(child)


def test_a_death_says_how() -> None:
    with Child(be_killed) as child, pytest.raises(EngineError, match="SIGKILL"):
        list(child)


def test_leaving_the_block_ends_it() -> None:
    with Child(wait_forever) as child:
        pid = child.receive()[1]
    assert not psutil.pid_exists(pid)


def test_the_environment_is_its_own() -> None:
    with Child(variable, "CUDA_VISIBLE_DEVICES", environment={"CUDA_VISIBLE_DEVICES": "3"}) as c:
        assert list(c) == ["3"]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != "3"


def test_it_dies_with_a_parent_that_is_killed() -> None:
    program = (
        "import os, signal\n"
        "from tests.workbench.test_apart import Child, wait_forever\n"
        "child = Child(wait_forever)\n"
        "print(child.receive()[1], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.returncode == -signal.SIGKILL, said.stderr
    pid = int(said.stdout)
    deadline_s = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
