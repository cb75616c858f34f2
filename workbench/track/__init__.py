"""Leave a trail of every stage and study in MLflow; the only package that knows it.

Four experiments belong to the pipeline. `workbench` is the trail: a parent run per pipeline run, a
child run per stage result. `workbench-variants`, `workbench-points` and `workbench-autoscalers` are for
comparing: a flat run per variant, per variant and load, and per candidate, because the chart view of
`mlflow ui` hides nested runs until they are unfolded. An exported plan is a version of the registered
model `workbench-plan`. A study has an experiment of its own, `workbench-<name>`: a parent with its
question, a child per point. `workbench-loads` holds single loads.

`records` and `studies` say what each holds. The store is `mlflow.db` and `mlartifacts/` under the
work directory, or what MLFLOW_TRACKING_URI names. A result that was logged before is recognised by
its content, so that a resumed pipeline adds nothing twice. Tracking runs under `attempt`: a store
that fails costs one line, and `workbench log` adds later what is on disk.
"""

from __future__ import annotations

from workbench.track.listing import list_runs
from workbench.track.pipeline_run import PipelineRun
from workbench.track.reach import UNTRACKED, attempt, chosen_uri, reached
from workbench.track.store import Tracker

__all__ = [
    "UNTRACKED",
    "PipelineRun",
    "Tracker",
    "attempt",
    "chosen_uri",
    "list_runs",
    "reached",
]
