"""The workbench: compress, measure, fit, simulate, tune, export and verify LLM serving.

    import workbench as wb

Every stage is a function here and a command of the same name. What they take and return are frozen
values. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from workbench.lazy import lazy

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
    "fidelity": "workbench.fidelity",
    "predict": "simulations.predict",
    "verify": "workbench.verify",
    "report": "workbench.report",
    # values
    "Arm": "workbench.measure",
    "Ask": "workbench.compress",
    "Candidate": "workbench.tune",
    "Cluster": "simulations.fleet",
    "EngineArgs": "serving.plan",
    "Fidelity": "workbench.fidelity",
    "FidelityStudy": "workbench.fidelity",
    "LatencyModel": "simulations.latency",
    "Measurement": "workbench.measure",
    "Measurements": "workbench.measure",
    "Payoff": "workbench.payoff",
    "Plan": "serving.plan",
    "SearchSpace": "workbench.tune",
    "SimResult": "simulations.result",
    "Slo": "serving.plan",
    "Study": "workbench.measure",
    "Variant": "serving.plan",
    "Variants": "workbench.compress",
    "Verification": "workbench.verify",
    "Workload": "simulations.traffic",
    "WorkbenchError": "serving.errors",
    "shipped_checkpoint": "workbench.model",
}
__all__ = sorted(_HOME)


lazy(__name__, _HOME)
