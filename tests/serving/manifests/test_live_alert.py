"""One exported alert in a live Prometheus and Alertmanager: it fires, and it resolves.

Only what the bundle's README names is changed: intervals, waits, addresses, and the receiver.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.manifests import render
from tests.serving.plans import plan

from .bundles import write
from .test_proxies import free_port

ALERT = "LatencyMeanHigh"
WAIT_S = 60
PROGRAMS = ("prometheus", "prometheus-alertmanager")


class Replica:
    """What a vLLM replica would tell: a hundred first tokens at every scrape."""

    def __init__(self) -> None:
        self.took_s = 2.0
        self._sum = self._count = 0.0

    def text(self) -> str:
        # A bad minute is forgotten sooner where more comes after it.
        more = 100.0 if self.took_s > 0.5 else 100_000.0
        self._sum += more * self.took_s
        self._count += more
        name = "vllm:time_to_first_token_seconds"
        return f"# TYPE {name} histogram\n" + "".join(
            f"{name}_{part} {value}\n"
            for part, value in (
                ('bucket{le="0.5"}', 0),
                ('bucket{le="+Inf"}', self._count),
                ("sum", self._sum),
                ("count", self._count),
            )
        )


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield http.server_port
        finally:
            http.shutdown()
            thread.join()


def exporter(replica: Replica) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(replica.text().encode())

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def receiver(told: queue.Queue[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for alert in json.loads(body)["alerts"]:
                told.put(alert)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@contextmanager
def program(*command: str, log: Path) -> Iterator[None]:
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def faster(folder: Path, target: int, alertmanager: int, webhook: int) -> None:
    """Change what the README says may be changed."""

    def change(name: str, edit: Any) -> None:
        found = yaml.safe_load((folder / name).read_text())
        edit(found)
        (folder / name).write_text(yaml.safe_dump(found))

    def prometheus(found: Any) -> None:
        found["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        found["scrape_configs"] = found["scrape_configs"][:1]
        found["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        at = [{"targets": [f"127.0.0.1:{alertmanager}"]}]
        found["alerting"]["alertmanagers"][0]["static_configs"] = at

    change("prometheus.yml", prometheus)
    change("rules.yml", lambda found: found["groups"][0].update(interval="1s"))

    def manager(found: Any) -> None:
        found["route"] |= {"group_wait": "1s", "group_interval": "1s"}
        found["receivers"][0]["webhook_configs"][0]["url"] = f"http://127.0.0.1:{webhook}/"

    change("alertmanager.yml", manager)


@pytest.mark.slow
def test_an_alert_fires_and_resolves(tmp_path: Path) -> None:
    for name in PROGRAMS:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    folder = write(render(plan()), tmp_path / "bundle") / "monitoring"
    replica, told = Replica(), queue.Queue[dict[str, Any]]()
    web, manager = free_port(), free_port()
    with serving(exporter(replica)) as target, serving(receiver(told)) as webhook:
        faster(folder, target, manager, webhook)
        alertmanager = (
            "prometheus-alertmanager",
            f"--config.file={folder / 'alertmanager.yml'}",
            f"--web.listen-address=127.0.0.1:{manager}",
            f"--storage.path={tmp_path / 'alertmanager'}",
            "--cluster.listen-address=",
        )
        prometheus = (
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--web.listen-address=127.0.0.1:{web}",
            f"--storage.tsdb.path={tmp_path / 'prometheus'}",
        )
        with (
            program(*alertmanager, log=tmp_path / "alertmanager.log"),
            program(*prometheus, log=tmp_path / "prometheus.log"),
        ):
            fired = awaited(told, "firing")
            assert fired["labels"]["alertname"] == ALERT
            assert fired["labels"]["severity"] == "page"
            assert fired["annotations"]["runbook"] == f"runbooks/{ALERT}.md"
            replica.took_s = 0.01
            awaited(told, "resolved")


def awaited(told: queue.Queue[dict[str, Any]], status: str) -> dict[str, Any]:
    while True:
        alert = told.get(timeout=WAIT_S)
        if alert["status"] == status and alert["labels"]["alertname"] == ALERT:
            return alert
