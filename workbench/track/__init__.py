"""Leave a trail of every stage in MLflow; the only package that knows it.

Three experiments. `workbench` is the trail: a parent run per pipeline run, a child run per stage
result. `workbench-variants` and `workbench-autoscalers` are for comparing: a flat run per variant
and per candidate, because the chart view of `mlflow ui` hides nested runs until they are unfolded.

`records` says what each holds. Everything lies under the work directory: `mlflow.db` and
`mlartifacts/`. A result that was logged before is recognised by its content, so that a resumed
pipeline adds nothing twice.
"""

from __future__ import annotations

from workbench.track.store import PipelineRun, Tracker

__all__ = ["PipelineRun", "Tracker"]
