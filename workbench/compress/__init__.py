"""Compress: make servable variants of a model and judge what each keeps of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "compress": "workbench.compress.compress",
    "distil": "workbench.compress.distil",
    "measure_quality": "workbench.compress.quality",
    "prune": "workbench.compress.prune",
    "quantize_int8": "workbench.compress.quantize",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"workbench.compress has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
