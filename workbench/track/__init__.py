"""Leave a trail of every stage in MLflow; the only package that knows it.

One experiment, one parent run per pipeline run, one child run per stage result (`records` says what
each holds). Everything lies under the work directory: `mlflow.db` and `mlartifacts/`. A result that
was logged before is recognised by its content, so that a resumed pipeline adds nothing twice.
"""

from __future__ import annotations

from workbench.track.store import PipelineRun, Tracker

__all__ = ["PipelineRun", "Tracker"]
