"""Checks of the host: room, limits, ports, programs, clock."""

from __future__ import annotations

from serving.doctor.bundle import Bundle
from serving.doctor.finding import Finding, Status
from serving.doctor.machine import UNLIMITED, Machine
from serving.doctor.memory import GIB

SOCKETS = 10_000
"""Connections that a gateway is to hold; each streams for as long as its answer takes."""
_FILES_PER_SOCKET = 2  # one to the client, one to the replica
CACHE_BYTES = 5 * GIB
"""Assumed: compiled kernels and graphs of one model, with room for another version."""
_SHM_BYTES = 2 * GIB  # as the manifests and compose.yaml give it
_LOCKED_BYTES = GIB
_USES = {
    "nginx": "balances over gateway processes",
    "redis-server": "shared caches",
    "prometheus": "metrics",
    "promtool": "`promtool test rules` of the bundle",
    "kubectl": "`kubectl apply -k`",
}


def disk(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether weights that are still to be fetched and compiled kernels find room."""
    name = "disk"
    if machine.cache is None:
        return Finding(name=name, status="skip", says="no file system answers")
    weights = 0
    if bundle is not None and bundle.model.folder is None and bundle.model.weights is not None:
        weights = bundle.model.weights.file_bytes
    wanted = weights + CACHE_BYTES
    free = machine.cache.free_bytes
    says = (
        f"{free / GIB:.0f} GiB free for {machine.cache.path}, needed {wanted / GIB:.0f}"
        f" ({weights / GIB:.0f} weights to fetch, {CACHE_BYTES / GIB:.0f} compiled, assumed)"
    )
    if free < wanted:
        return Finding(
            name=name,
            status="fail",
            says=says,
            remedy="Free some, or point HF_HOME and VLLM_CACHE_ROOT at a larger disk.",
        )
    status: Status = "warn" if free < 2 * wanted and weights else "pass"
    remedy = "Two revisions do not fit at once: a roll-out needs both." if status == "warn" else ""
    return Finding(name=name, status=status, says=says, remedy=remedy)


def shared_memory(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether /dev/shm is large enough: vLLM's processes and NCCL exchange data through it."""
    name = "/dev/shm"
    if machine.shm is None:
        return Finding(name=name, status="fail", says="is not there", remedy="Mount a tmpfs on it.")
    free = machine.shm.free_bytes
    several = bundle is not None and bundle.gpus_per_replica > 1
    says = f"{free / GIB:.2f} GiB free, the manifests give it {_SHM_BYTES / GIB:.0f}"
    if free >= _SHM_BYTES:
        return Finding(name=name, status="pass", says=says)
    return Finding(
        name=name,
        status="fail" if several else "warn",
        says=f"{says}; NCCL needs it" if several else says,
        remedy="docker run --shm-size 2g, or an emptyDir with medium: Memory.",
    )


def open_files(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether a gateway can hold 10,000 streams: each takes a descriptor to either side."""
    name = "open files"
    if machine.open_files is None:
        return Finding(name=name, status="skip", says="the system does not say")
    wanted = SOCKETS * _FILES_PER_SOCKET + 1000
    soft, hard = machine.open_files
    says = f"soft {_limit(soft)}, hard {_limit(hard)}; {SOCKETS:,} streams take {wanted:,}"
    if _reaches(soft, wanted):
        return Finding(name=name, status="pass", says=says)
    if _reaches(hard, wanted):
        remedy = f"ulimit -n {wanted}, or LimitNOFILE={wanted} in the unit."
    else:
        remedy = (
            f"Raise the hard limit: `* hard nofile {wanted}` in limits.conf, or the runtime's own."
        )
    return Finding(name=name, status="warn", says=says, remedy=remedy)


def locked_memory(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether memory can be pinned: RDMA registers its buffers."""
    name = "locked memory"
    if machine.locked_memory_bytes is None:
        return Finding(name=name, status="skip", says="the system does not say")
    soft, hard = machine.locked_memory_bytes
    says = f"soft {_limit(soft)}, hard {_limit(hard)} bytes"
    if _reaches(soft, _LOCKED_BYTES):
        return Finding(name=name, status="pass", says=says)
    if not machine.rdma:
        return Finding(name=name, status="skip", says=f"{says} (needed for RDMA only)")
    return Finding(
        name=name,
        status="warn",
        says=f"{says}; RDMA pins its buffers",
        remedy="ulimit -l unlimited; in a container --ulimit memlock=-1 or IPC_LOCK.",
    )


def ports(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether what compose.yaml starts finds its ports."""
    name = "ports"
    wanted = (8000, 9090) if bundle is None else bundle.ports
    taken = {port: why for port, why in machine.busy_ports.items() if port in wanted}
    if taken:
        return Finding(
            name=name,
            status="warn",
            says=", ".join(f"{port} {why}" for port, why in sorted(taken.items())),
            remedy="End what listens there (ss -ltnp), unless it is this deployment; Kubernetes does not"
            " mind.",
        )
    return Finding(name=name, status="pass", says=f"{', '.join(map(str, sorted(wanted)))} are free")


def programs(machine: Machine, bundle: Bundle | None) -> Finding:
    """Which optional programs are there."""
    there = sorted(name for name, path in machine.programs.items() if path)
    lacking = sorted(name for name, path in machine.programs.items() if not path)
    says = f"found {', '.join(there) or 'none'}"
    if not lacking:
        return Finding(name="programs", status="pass", says=says)
    told = ", ".join(f"{name} ({_USES.get(name, 'optional')})" for name in lacking)
    return Finding(name="programs", status="skip", says=f"{says}; not found: {told}")


def clock(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether the clock follows another: logs, traces and rates of several machines are joined by it."""
    name = "clock"
    if machine.clock_synchronised is None:
        return Finding(name=name, status="skip", says="the kernel does not say")
    if machine.clock_synchronised:
        return Finding(name=name, status="pass", says="the kernel's clock is synchronised")
    return Finding(
        name=name,
        status="warn",
        says="the kernel's clock is not synchronised",
        remedy="Start chrony or systemd-timesyncd on the host.",
    )


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else f"{value:,}"


def _reaches(limit: int, wanted: int) -> bool:
    return limit == UNLIMITED or limit >= wanted
