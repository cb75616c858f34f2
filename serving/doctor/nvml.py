"""GPUs, driver and links as NVML knows them; the package is optional and so is the driver.

Source:  NVML reference: nvmlDeviceGetP2PStatus says of two GPUs what nvmlDeviceGetNvLinkState, which
         is about single links, cannot: behind a switch every link goes to the switch
         (vllm-project/vllm#4159). Constants are written out, since pynvml has some of them wrong
         (NVML_P2P_CAPS_INDEX_READ is a tuple).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import combinations
from typing import Any

from serving.doctor.machine import Gpu, GpuPair

_READ, _WRITE, _NVLINK = 0, 1, 2  # NVML_P2P_CAPS_INDEX_*
_OK = 0  # NVML_P2P_STATUS_OK
_PATHS = {0: "same board", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_LINKS = 36


def probe_gpus(library: Any = None) -> dict[str, Any]:
    """The fields of a Machine that NVML answers.

    All GPUs of the machine or container, whatever CUDA_VISIBLE_DEVICES says.

    Args:    library: pynvml, or a scripted one; None imports it.
    """
    try:
        nvml = library or import_module("pynvml")
    except ImportError:
        return {"nvml_problem": "nvidia-ml-py is not installed"}
    try:
        nvml.nvmlInit()
    except Exception as error:  # NVML has a class for each
        return {"nvml_problem": f"NVML does not start: {error}"}
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        cuda = _ask(lambda: int(nvml.nvmlSystemGetCudaDriverVersion_v2()))
        return {
            "gpus": tuple(_gpu(nvml, handle) for handle in handles),
            "pairs": tuple(
                _pair(nvml, handles, *both) for both in combinations(range(len(handles)), 2)
            ),
            "driver": _ask(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            "cuda": None if cuda is None else (cuda // 1000, cuda % 1000 // 10),
        }
    except Exception as error:
        return {"nvml_problem": f"NVML does not answer: {error}"}
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    # Version 2 of the record tells what the driver keeps for itself, which CUDA does not have.
    known = _ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))
    reserved = 0 if known is None else int(known.reserved)
    links = [
        _ask(lambda link=link: nvml.nvmlDeviceGetNvLinkState(handle, link))  # type: ignore[misc]
        for link in range(_LINKS)
    ]
    capability = _ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(memory.total) - reserved,
        free_bytes=int(memory.free),
        compute_capability=None if capability is None else tuple(capability),
        nvlinks=sum(state == 1 for state in links),
    )


def _pair(nvml: Any, handles: list[Any], first: int, second: int) -> GpuPair:
    def can(what: int) -> bool:
        a, b = handles[first], handles[second]
        return bool(_ask(lambda: nvml.nvmlDeviceGetP2PStatus(a, b, what)) == _OK)

    level = _ask(lambda: nvml.nvmlDeviceGetTopologyCommonAncestor(handles[first], handles[second]))
    return GpuPair(
        first=first,
        second=second,
        nvlink=can(_NVLINK),
        p2p=can(_READ) and can(_WRITE),
        path=_PATHS.get(level, "") if level is not None else "",
    )


def _text(value: Any) -> str:
    # Old versions of the package answer with bytes.
    return value.decode() if isinstance(value, bytes) else str(value)


def _ask(question: Callable[[], Any]) -> Any:
    """The answer; None where the device, its driver or the package does not know the question."""
    try:
        return question()
    except Exception:  # NVML has a class for each, old packages have AttributeError
        return None
