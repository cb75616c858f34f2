"""How long a new replica takes until it answers, in its parts, each measured or assumed."""

from __future__ import annotations

from typing import NamedTuple

from serving.doctor.bundle import Bundle
from serving.doctor.finding import Finding, Status
from serving.doctor.machine import Machine
from serving.doctor.memory import GIB

IMAGE_BYTES = 10e9
"""Assumed: vllm/vllm-openai, compressed."""
NETWORK_BYTES_PER_S = 125e6
"""Assumed: 1 Gb/s from a registry or a hub."""
DISK_BYTES_PER_S = 1e9
"""Assumed where nothing could be read: one process, one NVMe disk."""
# A server on one H100, vLLM 0.26, shape of Llama-3-8B (experiments/LOG.md, 2026-11-23).
PROCESS_S = 51.0
COMPILE_S, COMPILE_SAVED_S = 21.0, 6.0
CAPTURE_S = 5.0
WARMUP_S = 15.0
LONG_S = 120.0
"""Longer than this, a burst is over, or its users are gone, before a new replica helps."""
_LIMIT_S = 1800.0  # of the manifests' startupProbe
_MARGIN = 1.25


class Part(NamedTuple):
    """One part of a start."""

    name: str
    seconds: float
    how: str


def parts(machine: Machine, bundle: Bundle) -> list[Part]:
    """The parts of a start on this machine, in their order."""
    eager = bundle.plan.engine.enforce_eager
    found = [
        Part("image pull", IMAGE_BYTES / NETWORK_BYTES_PER_S, "10 GB at 1 Gb/s, assumed"),
        Part("processes", PROCESS_S, "assumed"),
        *_weights(machine, bundle),
    ]
    if not eager:
        saved = machine.compile_cache
        how = "a compile cache is here, assumed" if saved else "no compile cache here, assumed"
        found.append(Part("compile", COMPILE_SAVED_S if saved else COMPILE_S, how))
        found.append(Part("CUDA graphs", CAPTURE_S, "assumed"))
    return [*found, Part("warm-up", WARMUP_S, "assumed")]


def _weights(machine: Machine, bundle: Bundle) -> list[Part]:
    """Fetching the weights where they are not here, and reading them."""
    weights = bundle.model.weights
    if weights is None:
        return []
    size = weights.file_bytes
    gib = f"{size / GIB:.2f} GiB"
    found = []
    if bundle.model.folder is None:
        found.append(Part("fetch weights", size / NETWORK_BYTES_PER_S, f"{gib} at 1 Gb/s, assumed"))
    if weights and bundle.plan.engine.load_format == "dummy":
        return found
    rate = machine.read_rate
    if rate is None:
        return [*found, Part("read weights", size / DISK_BYTES_PER_S, f"{gib} at 1 GB/s, assumed")]
    how = (
        f"{gib} at {rate.bytes_per_s / 1e9:.2f} GB/s, measured on {rate.read_bytes / 2**20:.0f} MiB"
    )
    if not rate.direct:
        how += ", perhaps from memory"
    return [*found, Part("read weights", size / rate.bytes_per_s, how)]


def cold_start(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether a new replica comes in time: soon enough for a burst, and as the plan was tuned."""
    name = "cold start"
    if bundle is None:
        return Finding(name=name, status="skip", says="needs a bundle")
    found = parts(machine, bundle)
    total_s = sum(part.seconds for part in found)
    told = ", ".join(f"{part.name} {part.seconds:.1f} ({part.how})" for part in found)
    says = f"about {total_s:.0f} s: {told}"
    planned_s = bundle.cold_start_s
    status: Status = "pass"
    if total_s > _LIMIT_S:
        status = "fail"
        says += f"; the startup probe ends a pod after {_LIMIT_S:.0f} s"
    elif planned_s > 0:
        # What the autoscaler was tuned with is priced in; what it was not makes it late.
        status = "warn" if total_s > _MARGIN * planned_s else "pass"
        says += f"; the plan was tuned with {planned_s:.0f} s"
    elif total_s > LONG_S:
        status = "warn"
    remedy = "" if status == "pass" else "; ".join(remedies(machine, bundle, found))
    return Finding(name=name, status=status, says=says, remedy=remedy)


def remedies(machine: Machine, bundle: Bundle, found: list[Part]) -> list[str]:
    """What shortens a start, the largest gain first, and what makes it matter less."""
    seconds = {part.name: part.seconds for part in found}
    gains = [(seconds["image pull"], "pull the image on every node beforehand (a DaemonSet)")]
    if "fetch weights" in seconds:
        gains.append((seconds["fetch weights"], "keep the weights on a volume of the node"))
    if "compile" in seconds and not machine.compile_cache:
        gains.append(
            (
                COMPILE_S - COMPILE_SAVED_S,
                "keep /cache (VLLM_CACHE_ROOT) on a volume: saves compiling",
            )
        )
    read_s = seconds.get("read weights", 0.0)
    if read_s > WARMUP_S:
        gains.append((read_s / 2, "a faster disk, or an INT8 variant: half the bytes"))
    told = [f"{what} (-{gain:.0f} s)" for gain, what in sorted(gains, key=lambda g: -g[0])]
    if bundle.plan.hpa is not None:
        told.append(f"minReplicas above {bundle.plan.hpa.min_replicas} keeps warm replicas ready")
    return told
