"""AMX is asked for, and vLLM finds who asks."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ASK = """
import ctypes
from workbench.measure.amx import allow

def permitted():
    found = ctypes.c_ulong()
    ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(found))
    return bool(found.value >> 18 & 1)

before = permitted()
allow()
print(before, permitted())
"""


def test_vllm_loads_it() -> None:
    (plugin,) = entry_points(group="vllm.general_plugins", name="workbench_amx")
    plugin.load()()


def test_tiles_are_permitted() -> None:
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "amx_tile" not in cpu.read_text():
        pytest.skip("this CPU has no AMX")
    said = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]
