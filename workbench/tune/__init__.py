"""Tune: search the autoscaler with the fewest GPU hours that keeps the SLO. Optuna's only home."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.tune.candidate import Candidate
    from workbench.tune.run import tune
    from workbench.tune.space import SearchSpace
    from workbench.tune.targets import TargetRange
    from workbench.tune.tuning import Tuning

_HOME = {
    "Candidate": "workbench.tune.candidate",
    "SearchSpace": "workbench.tune.space",
    "TargetRange": "workbench.tune.targets",
    "Tuning": "workbench.tune.tuning",
    "tune": "workbench.tune.run",
}
__all__ = ["Candidate", "SearchSpace", "TargetRange", "Tuning", "tune"]

lazy(__name__, _HOME)
