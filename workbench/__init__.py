"""The workbench: compress, measure, fit, simulate, tune, export and verify LLM serving.

    import workbench as wb

Every stage is a function here and a command of the same name. What they take and return are frozen
values. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_HOME = {
    # stages
    "compress": "workbench.compress",
    "recipes_of": "workbench.compress",
    "measure": "workbench.measure",
    "compare": "workbench.measure.compare",
    "capacity": "workbench.measure.capacity",
    "run_study": "workbench.measure",
    "sweep_batches": "workbench.measure",
    "sweep_rates": "workbench.measure",
    "frame": "workbench.measure",
    "fit": "workbench.fit",
    "simulate": "simulations.simulate",
    "tune": "workbench.tune",
    "export": "workbench.export",
    "verify": "workbench.verify",
    "report": "workbench.report",
    # values
    "Arm": "workbench.measure",
    "Ask": "workbench.compress",
    "Candidate": "workbench.tune",
    "Cluster": "simulations.fleet",
    "EngineArgs": "serving.plan",
    "LatencyModel": "simulations.latency",
    "Measurement": "workbench.measure",
    "Payoff": "workbench.payoff",
    "Plan": "serving.plan",
    "SearchSpace": "workbench.tune",
    "SimResult": "simulations.result",
    "Slo": "serving.plan",
    "Study": "workbench.measure",
    "Variant": "serving.plan",
    "Verification": "workbench.verify",
    "Workload": "simulations.traffic",
    "WorkbenchError": "serving.errors",
    "shipped_checkpoint": "workbench.model",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"workbench has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Workbench(ModuleType):
    """Keeps `wb.fit` the function, also when something imports the package workbench.fit."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Workbench
