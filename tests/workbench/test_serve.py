"""A bundle served for real answers the official client; verify believes it unless it is slowed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from serving.errors import BundleError, InputError
from serving.plan import EngineArgs
from serving.values import Estimate
from simulations.result import Prediction
from simulations.traffic import ClosedLoop, Fixed, Workload
from tests.workbench.export.bundles import evidence, plan, prediction
from workbench.export import export
from workbench.measure import measure
from workbench.measure.process import free_port
from workbench.serve import serve
from workbench.verify import verify

ENGINE = EngineArgs(max_model_len=256, enforce_eager=True, gpu_memory_utilization=0.3)
# A closed loop: no machine is too busy for it.
LOAD = Workload(
    arrivals=ClosedLoop(concurrency=2, requests=24),
    prompt_tokens=Fixed(tokens=32),
    output_tokens=Fixed(tokens=16),
)
ATTEMPTS = 40
"""Of a replay, on a machine that is busy with something else."""
METRICS = ("ttft_p50_s", "tpot_p50_s", "e2e_p50_s", "output_tokens_per_s")


def bundle_of(told: Prediction, folder: Path) -> Path:
    shipped = plan(engine=ENGINE)
    return export(shipped, folder, evidence=evidence(told, of=shipped))


def test_what_cannot_be_served_is_said_before_anything_starts(tmp_path: Path) -> None:
    bundle = bundle_of(prediction(), tmp_path / "bundle")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for options in ({"replicas": 0}, {"port": taken.getsockname()[1]}):
            with (
                pytest.raises(InputError, match=next(iter(options))),
                serve(bundle, folder=tmp_path / "run", **options),
            ):
                pass
    with pytest.raises(BundleError), serve(tmp_path, folder=tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """A process group that gets a quarter of its time."""
    over = threading.Event()

    def slow() -> None:
        while not over.is_set():
            os.killpg(pid, signal.SIGSTOP)
            time.sleep(0.15)
            os.killpg(pid, signal.SIGCONT)
            time.sleep(0.05)

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.vllm
def test_a_served_bundle_answers_and_is_verified_unless_its_engine_is_slowed(
    tmp_path: Path,
) -> None:
    first = bundle_of(prediction(), tmp_path / "first")
    with serve(first, folder=tmp_path / "run") as service:
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none")
        name = service.plan.variant.name
        assert [model.id for model in client.models.list()] == [name]
        said = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=8
        )
        assert said.usage is not None
        assert said.usage.completion_tokens > 0
        stream = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "Count"}],
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == len([c for c in chunks if c.choices]) - 1
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            client.chat.completions.create(model="gpt-9", messages=[])
        with urllib.request.urlopen(service.addresses["metrics"]) as answer:
            assert b'gateway_requests_total{route="chat",status="200"' in answer.read()
        assert service.ended() is None

        engine = service.replicas[0]
        engine.front = service.url
        for _ in range(ATTEMPTS):
            before = measure(
                engine.variant, LOAD, engine_args=ENGINE, folder=tmp_path / "before", engine=engine
            )
            if not before.invalid:
                break
        shown = before.summary()
        told = Prediction(
            workload=LOAD,
            metrics={
                name: Estimate(value=shown[name], low=shown[name], high=shown[name], n=1)
                for name in METRICS
            },
            tolerance_p50=1.0,
        )
        bundle = bundle_of(told, tmp_path / "bundle")
        found = verify(bundle, folder=tmp_path / "found", engine=engine, attempts=ATTEMPTS)
        assert found.holds, found.rows
        assert engine.pid is not None
        with slowed(engine.pid):
            late = verify(bundle, folder=tmp_path / "late", engine=engine, attempts=ATTEMPTS)
        assert not late.holds, late.rows

        os.killpg(engine.pid, signal.SIGKILL)
        while service.ended() is None:
            time.sleep(0.1)
        assert "replica 0: the server died (killed by SIGKILL)" in str(service.ended())
        with pytest.raises(openai.InternalServerError, match=r"replica|server"):
            client.with_options(max_retries=0).chat.completions.create(
                model=name, messages=[{"role": "user", "content": "Hello"}]
            )


@pytest.mark.vllm
def test_the_command_says_where_it_answers_and_ends_when_told(tmp_path: Path) -> None:
    bundle, port = bundle_of(prediction(), tmp_path / "bundle"), free_port()
    command = [sys.executable, "-m", "workbench.cli", "serve", str(bundle)]
    command += ["--workdir", str(tmp_path), "--port", str(port)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    lines: list[str] = []
    for line in child.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    page = f"http://127.0.0.1:{port}/"
    assert any(page in line for line in lines)
    assert any(line.strip().startswith("curl -N") for line in lines)
    with urllib.request.urlopen(page) as answer:
        assert b"<!doctype html>" in answer.read().lower()
    child.send_signal(signal.SIGTERM)
    assert child.wait(90) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(page)
