"""What this machine can run: refused before any work, with the reason."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from serving.errors import InputError
from serving.values import Value


class Needs(Value):
    """What it takes to serve a variant with vLLM.

    Attributes:
        gpu: compute capability of an NVIDIA GPU that has the kernels.
        cpu: whether vLLM for CPUs has them too.
        avx512: whether a CPU needs AVX-512 for it.
        package: what has to be installed besides.
    """

    gpu: tuple[int, int]
    cpu: bool = True
    avx512: bool = False
    package: str | None = None


def check(what: str, needs: Needs) -> None:
    """Refuse what vLLM cannot serve on this machine.

    Raises:  InputError: says what is missing.
    """
    lacking = missing(needs)
    if lacking is not None:
        raise InputError(
            f"{what} cannot run on this machine: {lacking}",
            remedy="Use a machine that has it, or --no-judge to write the checkpoint only.",
        )


def missing(needs: Needs) -> str | None:
    """What the machine lacks; None where it lacks nothing."""
    wanted = ".".join(map(str, needs.gpu))
    found = _gpu()
    if found is None:
        if not needs.cpu:
            return f"it needs an NVIDIA GPU of compute capability {wanted}, and there is none"
        if needs.avx512 and not _has_avx512():
            return "on a CPU it needs AVX-512, which this one lacks"
    else:
        name, capability = found
        if capability < needs.gpu:
            has = ".".join(map(str, capability))
            return f"it needs a GPU of compute capability {wanted}, and {name} has {has}"
    if needs.package is not None and find_spec(needs.package) is None:
        return f"the package {needs.package} is not installed"
    return None


@cache
def _gpu() -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the weakest GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = [
        (torch.cuda.get_device_capability(i), torch.cuda.get_device_name(i))
        for i in range(torch.cuda.device_count())
    ]
    capability, name = min(found)
    return name, capability


def _has_avx512() -> bool:
    import torch

    return bool(torch.cpu._is_avx512_supported())
