"""Looking at a real machine, at files laid out like one, and at a scripted NVML."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.doctor import Bundle, Machine, probe
from serving.doctor.machine import RdmaPort
from serving.doctor.model import Model
from serving.doctor.nvml import probe_gpus
from serving.doctor.probe import busy, rdma_ports, read_rate
from serving.errors import BundleError
from serving.plan import EngineArgs, Variant
from tests.serving.doctor.machines import safetensors, written

ROOT = Path(__file__).resolve().parents[3]


def test_this_machine() -> None:
    found = probe(ports=[0])
    assert isinstance(found, Machine)
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.memory_available_bytes > 0
    assert found.cache is not None
    assert found.cache.free_bytes > 0
    assert found.python.startswith("3.")
    assert found.busy_ports == {}
    assert bool(found.gpus) != bool(found.nvml_problem)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert busy([port]) == {port: "in use"}
    assert busy([port]) == {}


def test_rdma_ports_as_linux_lists_them(tmp_path: Path) -> None:
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    (port / "link_layer").write_text("InfiniBand\n")
    half = tmp_path / "rocep1" / "ports" / "1"
    half.mkdir(parents=True)
    (half / "rate").write_text("2.5 Gb/sec (1X SDR)\n")
    assert rdma_ports(tmp_path) == (
        RdmaPort(name="mlx5_0/1", state="ACTIVE", rate_gbps=400, link_layer="InfiniBand"),
        RdmaPort(name="rocep1/1", state="unknown", rate_gbps=2.5),
    )
    assert rdma_ports(tmp_path / "none") == ()


@pytest.mark.parametrize("size", [1, 4096, 20 * 2**20 + 7])
def test_reading_the_weights(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    found = read_rate(path)
    assert found is not None
    assert found.read_bytes == size
    assert found.bytes_per_s > 0


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    assert read_rate(tmp_path / "none") is None
    (tmp_path / "empty").touch()
    assert read_rate(tmp_path / "empty") is None


class Nvml:
    """Two GPUs of which the second has no links, as pynvml answers."""

    nvmlMemory_v2 = 33554472

    def __init__(self, *, old: bool = False) -> None:
        self.old = old
        self.closed = False

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.closed = True

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 12080

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return b"470.82" if self.old else "570.124.06"

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return b"Tesla" if self.old else "NVIDIA H100"

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int | None = None) -> Any:
        if version is None:
            return SimpleNamespace(total=1000, free=900)
        if self.old:
            raise TypeError("unexpected keyword argument 'version'")
        return SimpleNamespace(total=1000, free=900, reserved=50)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return (9, 0)

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        if handle or link >= 18:
            raise RuntimeError("Not Supported")
        return int(link < 12)

    def nvmlDeviceGetP2PStatus(self, first: int, second: int, what: int) -> int:
        return 0 if what in (0, 1) else 5

    def nvmlDeviceGetTopologyCommonAncestor(self, first: int, second: int) -> int:
        return 30


def test_gpus_as_nvml_tells_them() -> None:
    library = Nvml()
    found = Machine.model_validate(probe_gpus(library))
    assert library.closed
    assert (found.driver, found.cuda) == ("570.124.06", (12, 8))
    assert [gpu.nvlinks for gpu in found.gpus] == [12, 0]
    assert {gpu.memory_bytes for gpu in found.gpus} == {950}
    (pair,) = found.pairs
    assert (pair.nvlink, pair.p2p, pair.path) == (False, True, "PHB")


def test_an_old_package_answers_with_bytes_and_knows_less() -> None:
    found = Machine.model_validate(probe_gpus(Nvml(old=True)))
    assert found.driver == "470.82"
    assert found.gpus[0].name == "Tesla"
    assert found.gpus[0].memory_bytes == 1000


def test_a_driver_that_does_not_answer() -> None:
    class Broken(Nvml):
        def nvmlDeviceGetCount(self) -> int:
            raise RuntimeError("GPU is lost")

    library = Broken()
    assert "GPU is lost" in probe_gpus(library)["nvml_problem"]
    assert library.closed


def test_a_bundle_is_read_with_its_model(tmp_path: Path) -> None:
    folder = written(tmp_path, versions={"vllm": "0.32.0"}, hardware="H100", cold_start_s=64.5)
    found = Bundle.read(folder)
    assert (found.hardware, found.cold_start_s) == ("H100", 64.5)
    assert found.image is not None
    assert found.model.shape is not None
    assert found.model.weights is not None
    # Floats in the 16 bits that vLLM serves them in, integers as they are stored.
    assert found.model.weights.served_bytes == 10 * 64 * 2 + 64
    assert not found.model.weights.plain
    assert found.model.largest_file == folder / "model" / "model.safetensors"


def test_a_hub_model_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    commit = "a" * 40
    variant = Variant(name="a", model="org/model", revision=commit, size_bytes=123)
    nowhere = Model.of(variant, EngineArgs(), tmp_path / "bundle")
    assert nowhere.folder is None
    assert nowhere.weights is not None
    assert nowhere.weights.served_bytes == 123
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    safetensors(snapshot / "a.safetensors", {"w": ("BF16", [8, 8])})
    found = Model.of(variant, EngineArgs(), tmp_path / "bundle")
    assert found.folder == snapshot
    assert found.shape is None
    assert found.weights is not None
    assert found.weights.served_bytes == 128


def test_an_image_that_can_move_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path)
    path = folder / "images" / "kustomization.yaml"
    path.write_text(path.read_text().replace("digest: sha256:", "digest: latest#"))
    found = Bundle.read(folder)
    assert found.image is None
    assert "pins nothing" in found.image_problem


@pytest.mark.parametrize(
    ("path", "text", "says"),
    [
        ("plan.json", "{", "plan.json"),
        ("evidence.json", "[]", "no evidence"),
        ("evidence.json", "{", "no evidence"),
        ("evidence.json", '{"versions": ["vllm"]}', "no evidence"),
        ("evidence.json", '{"cold_start_s": "long"}', "no evidence"),
        ("model/config.json", "{", "config.json"),
        ("model/model.safetensors", "no tensors here", "no safetensors file"),
        ("model/model.safetensors", "\x02" + "\0" * 7 + "[]", "no safetensors file"),
        ("model/model.safetensors", "\x08" + "\0" * 7 + '{"a":{}}', "no safetensors file"),
    ],
)
def test_a_broken_bundle_is_refused(tmp_path: Path, path: str, text: str, says: str) -> None:
    folder = written(tmp_path)
    (folder / path).write_text(text)
    with pytest.raises(BundleError, match=says):
        Bundle.read(folder)


def test_the_checks_load_nothing_heavy() -> None:
    code = "import sys, serving.doctor as d, serving.cli.doctor; d.diagnose(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {"torch", "vllm", "numpy", "pandas", "psutil", "workbench", "simulations"}
    assert not loaded & heavy
