"""Permission for AMX, without which vLLM 0.32's attention for CPUs dies of an illegal instruction.

Linux gives the tile registers of Intel's AMX only to processes that asked for them. vLLM takes its AMX
kernels where the CPU has them, and leaves asking to oneDNN, which does not always run before them.

Source:  Linux, Documentation/arch/x86/xstate.rst.
"""

from __future__ import annotations

import ctypes
import platform

_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XTILEDATA = 18


def allow() -> None:
    """Ask for this process and what it forks; a CPU or kernel without AMX says no, which is fine.

    It is registered as a `vllm.general_plugins` entry point: every process of vLLM calls it first.
    """
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA)
