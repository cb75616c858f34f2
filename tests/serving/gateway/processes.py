"""A gateway and a Milvus in processes of their own, for tests that stop and kill them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving.gateway.upstream import MODEL
from workbench.measure.process import free_port


class MilvusServer:
    """`milvus-lite server` on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(self._folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "milvus_lite", "server", *where],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends_s = time.monotonic() + 60
        while time.monotonic() < ends_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("milvus-lite server does not listen")

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            self.process.wait()
            self.process = None


class GatewayProcess:
    """`serving gateway`."""

    def __init__(self, log: Path, *replicas: str, port: int | None = None, **env: str) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "serving.cli", "gateway", "--model", MODEL]
        command += ["--port", str(self.port)]
        command += [part for replica in replicas for part in ("--replica", replica)]
        with log.open("ab") as output:
            self.child = subprocess.Popen(
                command,
                env={**os.environ, **{f"GATEWAY_{name}": value for name, value in env.items()}},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def await_ready(self, limit_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            assert self.child.poll() is None, self.log.read_text()
            try:
                urllib.request.urlopen(f"{self.url}/readyz").close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def metric(self, line: str) -> float:
        """A sample by the beginning of its line; 0 where it is not there."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next((float(text.rpartition(" ")[2]) for text in lines if text.startswith(line)), 0)

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()


@contextmanager
def gateway_process(log: Path, *replicas: str, **env: str) -> Iterator[GatewayProcess]:
    made = GatewayProcess(log, *replicas, **env)
    try:
        yield made
    finally:
        made.stop()


def status_of(url: str) -> int:
    """HTTP status; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
