"""A real redis-server on a free port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workbench.measure.process import free_port


class RedisServer:
    """Started at once; `kill` and `start` may be repeated."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._durable = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""),
                *("--dir", str(self._folder), *self._durable),
            ],
            stdout=subprocess.DEVNULL,
        )
        end_s = time.monotonic() + 20
        while time.monotonic() < end_s:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as asked:
                    asked.sendall(b"PING\r\n")
                    if asked.recv(16).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            time.sleep(0.02)
        self.kill()
        raise TimeoutError(f"redis-server does not answer at {self.url}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """One that is gone afterwards."""
    made = RedisServer(folder)
    try:
        yield made
    finally:
        made.kill()
