"""Tune: search the autoscaler with the fewest GPU hours that keeps the SLO. Optuna's only home."""

from workbench.tune.run import tune
from workbench.tune.space import Candidate, SearchSpace, TargetRange
from workbench.tune.tuning import Tuning

__all__ = ["Candidate", "SearchSpace", "TargetRange", "Tuning", "tune"]
