"""Measure: start real vLLM, send it real load, record every request and every engine step.

Names are imported when they are first used: vLLM itself imports this package for the step log, and
must not pay for pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.measure.capacity import Capacity
    from workbench.measure.compare import Arm, Comparison
    from workbench.measure.engine import Engine, Run
    from workbench.measure.environment import Environment
    from workbench.measure.fake import FakeEngine
    from workbench.measure.measurement import Measurement, Measurements, ReplicaInfo, frame
    from workbench.measure.outcome import Request
    from workbench.measure.points import measure
    from workbench.measure.study import Study, StudyResult, read_study, run_study
    from workbench.measure.sweeps import sweep_batches, sweep_rates
    from workbench.measure.vllm_offline import OfflineEngine
    from workbench.measure.vllm_server import ServerEngine

_HOME = {
    "Arm": "compare",
    "Capacity": "capacity",
    "Comparison": "compare",
    "Engine": "engine",
    "Environment": "environment",
    "FakeEngine": "fake",
    "Measurement": "measurement",
    "Measurements": "measurement",
    "OfflineEngine": "vllm_offline",
    "ReplicaInfo": "measurement",
    "Request": "outcome",
    "Run": "engine",
    "ServerEngine": "vllm_server",
    "Study": "study",
    "StudyResult": "study",
    "frame": "measurement",
    "measure": "points",
    "read_study": "study",
    "run_study": "study",
    "sweep_batches": "sweeps",
    "sweep_rates": "sweeps",
}
__all__ = [
    "Arm",
    "Capacity",
    "Comparison",
    "Engine",
    "Environment",
    "FakeEngine",
    "Measurement",
    "Measurements",
    "OfflineEngine",
    "ReplicaInfo",
    "Request",
    "Run",
    "ServerEngine",
    "Study",
    "StudyResult",
    "frame",
    "measure",
    "read_study",
    "run_study",
    "sweep_batches",
    "sweep_rates",
]


lazy(__name__, {name: f"{__name__}.{module}" for name, module in _HOME.items()})
