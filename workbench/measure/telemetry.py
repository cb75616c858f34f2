"""What the device and the host did while a load ran: utilisation, memory, power, clocks, temperature.

NVML's counters are those that `nvidia-smi` and the DCGM exporter show. `gpu_utilisation` is the share
of time in which some kernel ran, however few of the device's units it used: how far a run is from
what the device can do is in roofline.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from math import isfinite, nan
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil

HOST = -1
"""`gpu` of the rows that describe the host."""

_GPU_COLUMNS = (
    "gpu_utilisation",
    "memory_utilisation",
    "memory_used_bytes",
    "memory_total_bytes",
    "power_w",
    "energy_j",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
)
_HOST_COLUMNS = ("cpu_utilisation", "host_memory_used_bytes")
_COLUMNS = ("t_s", "gpu", *_GPU_COLUMNS, "throttle", *_HOST_COLUMNS)

# Reasons that slow a busy device down, by NVML's bit. Idle, application clocks and sync boost are
# somebody's choice.
_POWER_CAP = "sw_power_cap"
_REASONS = {
    0x04: _POWER_CAP,
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}

Row = dict[str, Any]


class Nvml:
    """The GPUs that this process may use, as NVML describes them; none where there is no NVML.

    CUDA_VISIBLE_DEVICES, where set, chooses and orders them as CUDA does: positions or (the front of)
    UUIDs, up to the first that does not exist. CUDA and NVML count alike where CUDA_DEVICE_ORDER is
    PCI_BUS_ID or all GPUs are of one kind.

    Args:    library: pynvml, or a scripted one; None imports it.
    """

    def __init__(self, library: Any = None) -> None:
        self._library: Any = None
        self._handles: list[Any] = []
        try:
            nvml = library or import_module("pynvml")
            nvml.nvmlInit()
        except Exception:  # no package, no driver or no device: NVML has an error class for each
            return
        self._library = nvml
        self._handles = self._visible()

    def close(self) -> None:
        if self._library is not None:
            self._library.nvmlShutdown()
            self._library, self._handles = None, []

    @property
    def names(self) -> tuple[str, ...]:
        """One per GPU, in CUDA's order."""
        return tuple(str(self._library.nvmlDeviceGetName(handle)) for handle in self._handles)

    def read(self, gpu: int) -> Row:
        """The counters of one GPU now; NaN (`throttle`: None) where it does not have one.

        `energy_j` counts since the driver was loaded. From the A100's successors on, `power_w` is the
        mean of the last second.
        """
        nvml, handle = self._library, self._handles[gpu]
        rates = _ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = _ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        sm, memory_clock = 1, 2  # NVML_CLOCK_SM, NVML_CLOCK_MEM
        return {
            "gpu_utilisation": nan if rates is None else rates.gpu / 100,
            "memory_utilisation": nan if rates is None else rates.memory / 100,
            "memory_used_bytes": nan if memory is None else memory.used,
            "memory_total_bytes": nan if memory is None else memory.total,
            "power_w": _number(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            "energy_j": _number(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
            "sm_clock_mhz": _number(lambda: nvml.nvmlDeviceGetClockInfo(handle, sm)),
            "memory_clock_mhz": _number(lambda: nvml.nvmlDeviceGetClockInfo(handle, memory_clock)),
            "temperature_c": _number(lambda: nvml.nvmlDeviceGetTemperature(handle, 0)),
            "throttle": _ask(lambda: _reasons(self._clocks_event_reasons(handle))),
        }

    def _clocks_event_reasons(self, handle: Any) -> int:
        # Drivers before 535 know only the older name.
        new = _ask(lambda: self._library.nvmlDeviceGetCurrentClocksEventReasons(handle))
        if new is not None:
            return int(new)
        return int(self._library.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

    def _visible(self) -> list[Any]:
        nvml = self._library
        every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        if chosen is None:
            return every
        found: list[Any] = []
        for entry in (part.strip() for part in chosen.split(",")):
            if entry.isdigit():
                matching = every[int(entry) : int(entry) + 1]
            elif entry.startswith("MIG-"):
                matching = [_ask(partial(nvml.nvmlDeviceGetHandleByUUID, entry))]
            else:
                matching = [h for h in every if entry and _uuid(nvml, h).startswith(entry)]
            if len(matching) != 1 or matching[0] is None:
                break
            found += matching
        return found


class Telemetry:
    """Samples every GPU and the host in a thread of its own, from `with` to its end.

    One sample is taken on entering and one on leaving, so that whatever ran in between is covered.

    Args:    interval_s: between two samples; NVML itself renews most counters ten times a second.
             nvml: where the GPUs' counters come from.
    """

    def __init__(self, interval_s: float = 0.2, nvml: Nvml | None = None) -> None:
        self._interval_s = interval_s
        self._nvml = nvml or Nvml()
        self.gpus: tuple[str, ...] = self._nvml.names
        """The names of the GPUs that are sampled."""
        self._rows: list[Row] = []
        self._cores = sorted(os.sched_getaffinity(0))
        self._cpu_before = self._cpu_seconds()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()
        self._nvml.close()

    def sample(self) -> None:
        """Take one sample now."""
        for gpu in range(len(self.gpus)):
            counters = self._nvml.read(gpu)
            self._rows.append({"t_s": time.monotonic(), "gpu": gpu, **counters})
        before, self._cpu_before = self._cpu_before, self._cpu_seconds()
        busy_s, all_s = self._cpu_before[0] - before[0], self._cpu_before[1] - before[1]
        memory = psutil.virtual_memory()
        self._rows.append(
            {
                "t_s": time.monotonic(),
                "gpu": HOST,
                # Differences of large sums of floats, and the kernel's own counters, may be just below 0.
                "cpu_utilisation": max(0.0, busy_s / all_s) if all_s > 0 else nan,
                "host_memory_used_bytes": memory.total - memory.available,
            }
        )

    def frame(self, origin_s: float) -> pd.DataFrame:
        """One row per sample and GPU, and one per sample for the host.

        Columns: t_s (time.monotonic() - origin_s), gpu (its position, `HOST` for the host);
        gpu_utilisation and memory_utilisation (0..1), memory_used_bytes, memory_total_bytes, power_w,
        energy_j (since the first sample), sm_clock_mhz, memory_clock_mhz, temperature_c, throttle
        (names of what slows the device down, with commas; "" is nothing, None is unknown);
        cpu_utilisation (since the sample before, 0..1 of the cores of this process) and
        host_memory_used_bytes. What a row does not have is NaN.

        Args:    origin_s: the start of the run on the system's monotonic clock.
        """
        table = pd.DataFrame(list(self._rows), columns=list(_COLUMNS))
        numbers = [name for name in _COLUMNS if name not in ("gpu", "throttle")]
        table = table.astype({**dict.fromkeys(numbers, "float64"), "gpu": "int64"})
        table["throttle"] = pd.Series(
            [row.get("throttle") for row in self._rows[: len(table)]], dtype=object
        )
        table["t_s"] -= origin_s
        for gpu in range(len(self.gpus)):
            rows = table["gpu"] == gpu
            table.loc[rows, "energy_j"] = _increase(table.loc[rows, "energy_j"].to_numpy())
        return table

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()

    def _cpu_seconds(self) -> tuple[float, float]:
        """Busy and all seconds of this process's cores since the machine started."""
        times = psutil.cpu_times(percpu=True)
        own = [times[core] for core in self._cores if core < len(times)]
        # `guest` is contained in `user`.
        everything = sum(sum(core) - core.guest - core.guest_nice for core in own)
        return everything - sum(core.idle + core.iowait for core in own), everything


def summarise(frame: pd.DataFrame, window_s: tuple[float, float]) -> dict[str, float]:
    """A window of a Telemetry frame as one figure per counter; NaN where nothing was sampled.

    Over all GPUs: memory, power and energy are summed, temperature_max_c is the hottest, the rest are
    means. throttled_share is the share of samples slowed by heat or by the hardware,
    power_capped_share of those held at the power limit.

    Energy is the counter's, between samples by interpolation; where a device has no counter, or the
    samples do not span the window, it is mean power x time.

    Args:    window_s: begin and end on the frame's clock.
    """
    begin_s, end_s = window_s
    inside = frame[frame["t_s"].between(begin_s, end_s)]
    gpus, host = inside[inside["gpu"] != HOST], inside[inside["gpu"] == HOST]
    by_gpu = gpus.groupby("gpu")
    reasons = gpus["throttle"].dropna().str.split(",")
    capped = reasons.map(lambda names: _POWER_CAP in names)
    throttled = reasons.map(lambda names: bool(set(names) - {_POWER_CAP, ""}))
    energies_j = [
        _energy_j(rows, begin_s, end_s) for gpu, rows in frame.groupby("gpu") if gpu != HOST
    ]
    return {
        "gpu_utilisation_mean": float(gpus["gpu_utilisation"].mean()),
        "memory_used_peak_bytes": _sum(by_gpu["memory_used_bytes"].max()),
        "power_mean_w": _sum(by_gpu["power_w"].mean()),
        "energy_j": _sum(pd.Series(energies_j, dtype="float64")),
        "sm_clock_mean_mhz": float(gpus["sm_clock_mhz"].mean()),
        "temperature_max_c": float(gpus["temperature_c"].max()),
        "throttled_share": float(throttled.mean()),
        "power_capped_share": float(capped.mean()),
        "cpu_utilisation_mean": float(host["cpu_utilisation"].mean()),
    }


def _energy_j(rows: pd.DataFrame, begin_s: float, end_s: float) -> float:
    t_s = rows["t_s"].to_numpy()
    counted = rows.dropna(subset="energy_j")
    known_s, known_j = counted["t_s"].to_numpy(), counted["energy_j"].to_numpy()
    if len(known_s) and known_s[0] <= begin_s and end_s <= known_s[-1]:
        at_begin, at_end = np.interp((begin_s, end_s), known_s, known_j)
        return float(at_end - at_begin)
    power_w = rows["power_w"][(t_s >= begin_s) & (t_s <= end_s)].mean()
    return float(power_w) * (end_s - begin_s)


def _increase(counter: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What a counter gained since its first value; one that falls began again at zero."""
    gained = counter.copy()
    known = np.flatnonzero(np.isfinite(counter))
    if len(known):
        steps = np.diff(counter[known], prepend=counter[known[0]])
        gained[known] = np.cumsum(np.where(steps < 0, counter[known], steps))
    return gained


def _sum(values: pd.Series) -> float:
    """NaN where any is unknown, and of none."""
    return float(values.sum(skipna=False)) if len(values) else nan


def _reasons(bits: int) -> str:
    return ",".join(name for bit, name in _REASONS.items() if bits & bit)


def _uuid(nvml: Any, handle: Any) -> str:
    return str(nvml.nvmlDeviceGetUUID(handle))


def _ask(question: Callable[[], Any]) -> Any:
    """The answer; None where the device, its driver or the package does not know the question."""
    try:
        return question()
    except Exception:  # NVML has an error class for each, a scripted or old library others
        return None


def _number(question: Callable[[], Any]) -> float:
    answer = _ask(question)
    return nan if answer is None or not isfinite(answer) else float(answer)
