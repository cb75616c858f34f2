"""Measure: start real vLLM, send it real load, record every request and every engine step.

Names are imported when they are first used: vLLM itself imports this package for the step log, and
must not pay for pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.measure.engine import Engine, Run
    from workbench.measure.environment import Environment
    from workbench.measure.fake import FakeEngine
    from workbench.measure.measurement import Measurement, ReplicaInfo, frame
    from workbench.measure.outcome import Request
    from workbench.measure.points import measure
    from workbench.measure.sweeps import sweep_batches, sweep_rates
    from workbench.measure.vllm_offline import OfflineEngine
    from workbench.measure.vllm_server import ServerEngine

_HOME = {
    "Engine": "engine",
    "Environment": "environment",
    "FakeEngine": "fake",
    "Measurement": "measurement",
    "OfflineEngine": "vllm_offline",
    "ReplicaInfo": "measurement",
    "Request": "outcome",
    "Run": "engine",
    "ServerEngine": "vllm_server",
    "frame": "measurement",
    "measure": "points",
    "sweep_batches": "sweeps",
    "sweep_rates": "sweeps",
}
__all__ = [
    "Engine",
    "Environment",
    "FakeEngine",
    "Measurement",
    "OfflineEngine",
    "ReplicaInfo",
    "Request",
    "Run",
    "ServerEngine",
    "frame",
    "measure",
    "sweep_batches",
    "sweep_rates",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"workbench.measure has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"workbench.measure.{_HOME[name]}"), name)
    globals()[name] = value
    return value
