"""A child process that never outlives its parent, and takes its own children along."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_GRACE_S = 5.0


class ChildGroup:
    """A command in a process group of its own, with its output in a log.

    A watchdog of a megabyte (`sh`) waits on a pipe that only this process holds: when this process
    dies, by `kill -9` too, the pipe closes and the watchdog kills the group. A death signal of the
    kernel's would reach the child alone, and not what the child has started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._child.pid
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"read line || kill -s KILL -- -{self.pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def ended(self) -> str | None:
        """How the child ended, None while it runs."""
        code = self._child.poll()
        if code is None:
            return None
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"

    def kill(self, grace_s: float = _GRACE_S) -> None:
        """End the whole group: asked first, so that shared memory is given back, then killed."""
        if self._child.poll() is None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait()
        if self._watchdog.poll() is None:
            with suppress(BrokenPipeError):
                self._watchdog.communicate(b"done\n")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_in_use(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
