"""Checks of GPUs, their driver, and what joins them."""

from __future__ import annotations

from math import ceil

from serving.doctor.bundle import Bundle
from serving.doctor.finding import Finding
from serving.doctor.machine import Gpu, Machine
from serving.doctor.memory import GIB

OLDEST_DRIVER = 525
"""The first that runs CUDA 12, and by its minor versions' promise every CUDA 12.x."""


def gpus(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether there are GPUs, and enough of them for one replica."""
    name = "GPUs"
    if not machine.gpus:
        return _no_gpu(machine, bundle)
    kinds = sorted({gpu.name for gpu in machine.gpus})
    memory = min(gpu.memory_bytes for gpu in machine.gpus)
    found = f"{len(machine.gpus)} x {', '.join(kinds)}, {memory / GIB:.1f} GiB"
    if bundle is None:
        return Finding(name=name, status="pass", says=found)
    wanted = bundle.gpus_per_replica
    if len(machine.gpus) < wanted:
        return Finding(
            name=name,
            status="fail",
            says=f"{found}; one replica needs {wanted}",
            remedy="Use a larger machine, or export with a smaller tensor_parallel_size.",
        )
    replicas = len(machine.gpus) // wanted
    room = f"{found}: room for {replicas} replica{'s' * (replicas > 1)}"
    if len(kinds) > 1:
        return Finding(
            name=name,
            status="warn",
            says=f"{room}, of several kinds",
            remedy="Let CUDA_VISIBLE_DEVICES or a node label choose one kind: replicas of unlike speed"
            " break the plan's prediction.",
        )
    if bundle.hardware and bundle.hardware not in kinds and not bundle.measured_on_cpu:
        return Finding(
            name=name,
            status="warn",
            says=f"{room}; the plan was measured on {bundle.hardware}",
            remedy="Run `workbench verify --bundle DIR` here, or measure again.",
        )
    return Finding(name=name, status="pass", says=room)


def _no_gpu(machine: Machine, bundle: Bundle | None) -> Finding:
    why = machine.nvml_problem or "NVML sees none"
    if bundle is None or bundle.measured_on_cpu:
        says = f"none ({why})"
        if bundle is not None:
            says += "; the plan was measured on a CPU too, its manifests ask for GPUs"
        remedy = "vLLM for CPUs serves here: pip install 'llm-workbench[cpu]'."
        return Finding(name="GPUs", status="warn", says=says, remedy=remedy)
    return Finding(
        name="GPUs",
        status="fail",
        says=f"none ({why}); one replica needs {bundle.gpus_per_replica}",
        remedy="Install NVIDIA's driver (in a container: its toolkit, in Kubernetes: its device"
        " plugin), and `pip install nvidia-ml-py`.",
    )


def driver(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether the driver is new enough for the CUDA that vLLM and torch are built for."""
    name = "driver and CUDA"
    if not machine.gpus or machine.driver is None:
        return Finding(name=name, status="skip", says="no driver answers")
    runs = "" if machine.cuda is None else f", runs CUDA up to {_version(machine.cuda)}"
    says = f"driver {machine.driver}{runs}"
    built = cuda_of(bundle.versions.get("torch", "")) if bundle is not None else None
    if built is None:
        built = cuda_of(machine.versions.get("torch", ""))
    if built is not None and machine.cuda is not None and machine.cuda[0] < built[0]:
        return Finding(
            name=name,
            status="fail",
            says=f"{says}; torch is built for CUDA {_version(built)}",
            remedy=f"Update the driver to one for CUDA {built[0]}.",
        )
    major = machine.driver.partition(".")[0]
    if major.isdigit() and int(major) < OLDEST_DRIVER:
        return Finding(
            name=name,
            status="fail",
            says=f"{says}; vLLM is built for CUDA 12 or newer",
            remedy=f"Update the driver to {OLDEST_DRIVER} or newer.",
        )
    return Finding(name=name, status="pass", says=says)


def cuda_of(torch: str) -> tuple[int, int] | None:
    """(12, 8) of '2.11.0+cu128'; None where the version does not say."""
    local = torch.partition("+")[2]
    digits = local.removeprefix("cu")
    if local == digits or not digits.isdigit() or len(digits) < 3:
        return None
    return int(digits[:-1]), int(digits[-1])


def free_memory(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether as much GPU memory is free as vLLM wants at its start; it refuses where it is not."""
    name = "GPU memory free"
    if bundle is None or not machine.gpus:
        return Finding(name=name, status="skip", says="needs a bundle and a GPU")
    engine = bundle.plan.engine

    def wanted(gpu: Gpu) -> int:
        # Asked of the device even where the KV cache has a fixed size.
        return ceil(engine.gpu_memory_utilization * gpu.memory_bytes)

    ready = [gpu for gpu in machine.gpus if gpu.free_bytes >= wanted(gpu)]
    says = f"{len(ready)} of {len(machine.gpus)} GPUs have {wanted(machine.gpus[0]) / GIB:.1f} GiB free"
    if len(ready) < bundle.gpus_per_replica:
        most = max(gpu.free_bytes for gpu in machine.gpus)
        return Finding(
            name=name,
            status="fail",
            says=f"{says}, the most is {most / GIB:.1f} GiB",
            remedy="End what holds it (nvidia-smi names it; the replica itself, if it runs already).",
        )
    return Finding(name=name, status="pass", says=says)


def nvlink(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether the GPUs of one replica reach each other by NVLink, or at least directly."""
    name = "NVLink and P2P"
    wanted = 1 if bundle is None else bundle.gpus_per_replica
    if len(machine.gpus) < 2:
        if wanted > 1:
            return Finding(name=name, status="skip", says="fewer than two GPUs")
        return Finding(name=name, status="skip", says="not needed: one GPU per replica")
    linked = sum(pair.nvlink for pair in machine.pairs)
    direct = sum(pair.p2p for pair in machine.pairs)
    everything = len(machine.pairs)
    links = min(gpu.nvlinks for gpu in machine.gpus)
    says = (
        f"{linked} of {everything} pairs by NVLink ({links} links each), {direct} read each other"
    )
    if linked == everything:
        return Finding(name=name, status="pass", says=says)
    if wanted == 1:
        return Finding(name=name, status="pass", says=f"{says}; not needed: one GPU per replica")
    if best_group(machine) >= wanted:
        return Finding(
            name=name,
            status="warn",
            says=f"{says}; a replica of {wanted} finds {best_group(machine)} GPUs that are joined",
            remedy="Choose joined ones with CUDA_VISIBLE_DEVICES, or let the scheduler look at topology.",
        )
    paths = ", ".join(sorted({pair.path for pair in machine.pairs if pair.path})) or "PCIe"
    if direct < everything:
        return Finding(
            name=name,
            status="fail" if direct == 0 else "warn",
            says=f"{says}; the rest go through the host ({paths})",
            remedy="Switch off ACS and the IOMMU for peer traffic (NCCL's troubleshooting page), use"
            " machines with NVLink, or tensor_parallel_size 1.",
        )
    return Finding(
        name=name,
        status="warn",
        says=f"{says}; all-reduce goes over PCIe ({paths})",
        remedy="Use machines with NVLink, a quantized variant on one GPU, or pipeline parallelism.",
    )


def best_group(machine: Machine) -> int:
    """The most GPUs of which each has NVLink to a first one and they to each other, found greedily."""
    joined = {(pair.first, pair.second) for pair in machine.pairs if pair.nvlink}
    best = 1 if machine.gpus else 0
    for first in range(len(machine.gpus)):
        group = [first]
        for other in range(len(machine.gpus)):
            if other not in group and all(
                (min(one, other), max(one, other)) in joined for one in group
            ):
                group.append(other)
        best = max(best, len(group))
    return best


def rdma(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether there is RDMA for replicas that span machines."""
    name = "RDMA"
    active = [port for port in machine.rdma if port.state == "ACTIVE"]
    told = ", ".join(f"{p.name} {p.rate_gbps:g} Gb/s {p.link_layer}".strip() for p in active)
    down = len(machine.rdma) - len(active)
    if down:
        told += f"{'; ' * bool(told)}{down} port{'s' * (down > 1)} not active"
    # Within a machine GPUs are joined by NVLink or PCIe: adapters join machines.
    spans = bundle is not None and bundle.gpus_per_replica > max(1, len(machine.gpus))
    if not spans:
        if bundle is not None and bundle.gpus_per_replica > 1 and active:
            return Finding(name=name, status="pass", says=told)
        why = (
            "not needed: a replica fits into one machine"
            if bundle
            else "needed only between machines"
        )
        return Finding(name=name, status="skip", says=f"{told or 'none'} ({why})")
    if not active:
        return Finding(
            name=name,
            status="fail",
            says=told or "no device under /sys/class/infiniband",
            remedy="Load the adapter's driver (mlx5_ib), see `ibstat`; in Kubernetes pass the device in.",
        )
    return Finding(name=name, status="warn" if down else "pass", says=told)


def _version(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"
