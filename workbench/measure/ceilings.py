"""The measured ceilings of a device: memory bandwidth and matrix products.

Measured with large copies and products on the device itself, and not taken from a data sheet, which
nobody's kernels reach.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field

from serving.errors import MeasurementError
from serving.values import Value
from workbench.measure.engine import OnProgress
from workbench.measure.environment import Environment, cpu_name, engine_threads

_DTYPES = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float8_e4m3": "float8_e4m3fn",
    "int8": "int8",
}
"""Our names, torch's names. float32 comes first: the others are compared with it."""
_REPEATS = 20
_WARM_UP_S = 0.2
_BUDGET_S = 0.3
"""Of timed calls per kernel and size; at least three are timed."""
_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Of the matrices: the larger is slower where it does not fit a CPU's cache."""
_PROBE = 256
_TOO_LONG_S = 0.5
"""For one call: a type that the device lacks is computed element by element, for up to a minute."""


class Ceilings(Value):
    """The best that was seen of a device: no run on it can be faster."""

    hardware: str
    device: Literal["cpu", "cuda"]
    bandwidth_bytes_per_s: float = Field(gt=0)
    """Bytes read and bytes written, of the best of three kernels."""
    bandwidth_kernel: str
    """copy (y = x), triad (z = x + a y) or read (sum of x)."""
    flops_per_s: dict[str, float]
    """By the type of the factors: large square matrix products, 2 n^3 operations each. Absent is what
    the device cannot do, or only by conversion, slower than float32."""
    spread: dict[str, float]
    """By kernel and type, (median - best) / best of the repeats."""
    repeats: int
    """At most so many timed calls per kernel and size."""
    threads: int | None = None
    """Of torch on a CPU."""
    versions: dict[str, str]
    measured_at: str
    """UTC, ISO 8601."""


def measure_ceilings(
    device: Literal["auto", "cpu", "cuda"] = "auto", on_progress: OnProgress | None = None
) -> Ceilings:
    """Measure this machine's memory bandwidth and matrix products; takes some seconds.

    Best of the repeats after a warm-up: a ceiling is what the device can do when nothing disturbs it.
    On a CPU with the threads that an engine takes. Initialises CUDA in this process for good and needs
    some GiB of the device: `ceilings` does it in a process of its own.

    Args:    on_progress: called with what is measured and the share that is done.
    """
    import torch

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    threads = None if kind == "cuda" else engine_threads()
    if threads:
        torch.set_num_threads(threads)
    timer = _cuda_timer if kind == "cuda" else _cpu_timer
    progress = on_progress or (lambda _what, _share: None)

    spread: dict[str, float] = {}
    bandwidths: dict[str, float] = {}
    progress("memory bandwidth", 0.0)
    for name, moved_bytes, kernel in _bandwidth_kernels(kind):
        best_s, spread[name] = _best(timer, kernel)
        bandwidths[name] = moved_bytes / best_s
    fastest = max(bandwidths, key=lambda name: bandwidths[name])

    flops_per_s: dict[str, float] = {}
    for i, dtype in enumerate(_DTYPES):
        progress(f"matrix products in {dtype}", (i + 1) / (len(_DTYPES) + 1))
        found = _matmul_peak(timer, kind, dtype)
        if found is not None and found[0] >= flops_per_s.get("float32", 0.0):
            flops_per_s[dtype], spread[dtype] = found
    environment = Environment.capture()
    return Ceilings(
        hardware=torch.cuda.get_device_name() if kind == "cuda" else cpu_name(),
        device=kind,
        bandwidth_bytes_per_s=bandwidths[fastest],
        bandwidth_kernel=fastest,
        flops_per_s=flops_per_s,
        spread=spread,
        repeats=_REPEATS,
        threads=threads,
        versions=environment.versions,
        measured_at=environment.started_at,
    )


def ceilings(folder: Path, on_progress: OnProgress | None = None) -> Ceilings:
    """The ceilings of this machine, measured once per hardware, torch and threads, and kept in `folder`.

    Measured in a child process: CUDA stays untouched in this one, and its memory is given back. No
    engine may run meanwhile.

    Raises:  MeasurementError: the child failed.
    """
    environment = Environment.capture()
    slug = re.sub(r"[^a-z0-9]+", "-", environment.hardware.lower()).strip("-")
    path = folder / f"ceilings-{slug}.json"
    if path.exists():
        kept = Ceilings.read(path)
        same_threads = kept.threads in (None, engine_threads())
        if kept.versions.get("torch") == environment.versions.get("torch") and same_threads:
            return kept
    if on_progress is not None:
        on_progress("ceilings of the device", 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        said = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
        raise MeasurementError(
            f"the ceilings of {environment.hardware} could not be measured: {said[-1][:200]}",
            remedy="Free the device and try again.",
        )
    return Ceilings.read(path)


_CHILD = """
import sys
from pathlib import Path
from workbench.measure.roofline import measure_ceilings
measure_ceilings().write(Path(sys.argv[1]))
"""


Kernel = Callable[[], Any]
Timer = Callable[[Kernel], float]


def _cpu_timer(kernel: Kernel) -> float:
    began_s = time.perf_counter()
    kernel()
    return time.perf_counter() - began_s


def _cuda_timer(kernel: Kernel) -> float:
    """By the device's own clock, so that the launch is not counted."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    kernel()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def _best(timer: Timer, kernel: Kernel) -> tuple[float, float]:
    """Seconds of the fastest call, and how much slower the median is, as a share of it."""
    until_s = time.perf_counter() + _WARM_UP_S
    timer(kernel)
    while time.perf_counter() < until_s:  # an idle device needs a while to reach its clock
        timer(kernel)
    took_s: list[float] = []
    until_s = time.perf_counter() + _BUDGET_S
    while len(took_s) < _REPEATS and (len(took_s) < 3 or time.perf_counter() < until_s):
        took_s.append(timer(kernel))
    return min(took_s), median(took_s) / min(took_s) - 1


def _bandwidth_kernels(kind: str) -> Iterator[tuple[str, int, Kernel]]:
    """Name, bytes moved and kernel, on vectors well beyond the last cache.

    Source:  copy and triad as in McCalpin's STREAM, which counts bytes the same way; what a CPU reads
             of a line before it writes it is not counted, and `read` has none of it.
    """
    import torch

    elements = 2**28 if kind == "cuda" else 2**26
    x, y, z = (torch.ones(elements, dtype=torch.float32, device=kind) for _ in range(3))
    yield "copy", 2 * x.nbytes, lambda: y.copy_(x)
    yield "triad", 3 * x.nbytes, lambda: torch.add(x, y, alpha=2.0, out=z)
    yield "read", x.nbytes, lambda: x.sum()


def _matmul_peak(timer: Timer, kind: str, dtype: str) -> tuple[float, float] | None:
    """Operations per second and their spread; None where this torch or device has no such product."""
    best: tuple[float, float] | None = None
    try:
        probe_s = min(timer(_matmul(_PROBE, kind, dtype)) for _ in range(3))
        for n in _SIDES[kind]:
            if probe_s * (n / _PROBE) ** 3 > _TOO_LONG_S:
                return best
            seconds, spread = _best(timer, _matmul(n, kind, dtype))
            if best is None or 2 * n**3 / seconds > best[0]:
                best = 2 * n**3 / seconds, spread
    except (RuntimeError, NotImplementedError, AttributeError):
        return None
    return best


def _matmul(n: int, kind: str, dtype: str) -> Kernel:
    """A product of two random n x n matrices: zeros would draw less power and run faster."""
    import torch

    wanted = getattr(torch, _DTYPES[dtype])
    a, b = (torch.randn(n, n, device=kind) for _ in range(2))
    if dtype == "int8":
        a8, b8 = ((m * 40).clamp(-127, 127).to(wanted) for m in (a, b))
        return partial(torch._int_mm, a8, b8.t())
    a, b = a.to(wanted), b.to(wanted)
    if dtype == "float8_e4m3":
        one = torch.ones((), device=kind)
        return partial(
            torch._scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
        )
    return partial(torch.mm, a, b)
