"""Fidelity: is what the twin says of loads that it was not fitted to what real vLLM does?"""

from workbench.fidelity.loads import FidelityStudy, Loads
from workbench.fidelity.measuring import Runs, measure_loads
from workbench.fidelity.result import Fidelity
from workbench.fidelity.run import compare_kept, fidelity

__all__ = [
    "Fidelity",
    "FidelityStudy",
    "Loads",
    "Runs",
    "compare_kept",
    "fidelity",
    "measure_loads",
]
