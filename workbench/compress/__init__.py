"""Compress: make servable variants of a model and judge what each keeps of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.compress.distil import distil
    from workbench.compress.prune import prune
    from workbench.compress.quality import measure_quality
    from workbench.compress.quantize import quantize_int8
    from workbench.compress.variants import compress

_HOME = {
    "compress": "workbench.compress.variants",
    "distil": "workbench.compress.distil",
    "measure_quality": "workbench.compress.quality",
    "prune": "workbench.compress.prune",
    "quantize_int8": "workbench.compress.quantize",
}
__all__ = ["compress", "distil", "measure_quality", "prune", "quantize_int8"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"workbench.compress has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
