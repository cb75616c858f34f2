"""All checks, in the order in which a start would meet them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serving.doctor import coldstart, gpus, headroom, host, software
from serving.doctor.bundle import Bundle
from serving.doctor.finding import Finding, Findings
from serving.doctor.machine import Machine
from serving.doctor.probe import probe

Check = Callable[[Machine, Bundle | None], Finding]

CHECKS: tuple[Check, ...] = (
    *(gpus.gpus, gpus.driver, gpus.free_memory, gpus.nvlink, gpus.rdma),
    *(headroom.head_room, coldstart.cold_start),
    *(software.image_pin, software.model_pin, software.versions, software.python),
    *(host.disk, host.shared_memory, host.open_files, host.locked_memory),
    *(host.ports, host.programs, host.clock),
)


def examine(machine: Machine, bundle: Bundle | None = None) -> Findings:
    """What every check finds; without a bundle those of the machine alone say something."""
    return Findings(check(machine, bundle) for check in CHECKS)


def diagnose(folder: Path | None = None) -> Findings:
    """Probe this machine and examine it, for the bundle in a folder or for none.

    Raises:  BundleError: no bundle, or one that cannot be read.
    """
    bundle = None if folder is None else Bundle.read(folder)
    if bundle is None:
        return examine(probe(ports=(8000, 9090)))
    return examine(probe(ports=bundle.ports, weights=bundle.model.largest_file), bundle)
