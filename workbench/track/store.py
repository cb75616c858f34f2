"""The MLflow store of a work directory: parent runs, child runs, each logged once."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.plan import Plan, Variant
from serving.values import Value
from simulations.latency import LatencyModel
from workbench.track import records
from workbench.track.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from workbench.measure import Measurement
    from workbench.tune import Tuning
    from workbench.verify import Verification

_KEY = "workbench.key"
_PARENT = "workbench.parent"
_NESTED_UNDER = "mlflow.parentRunId"
_INTERNAL = ("mlflow.", _KEY, _PARENT)
# Weights stay where they are: an artifact store is no place for a second copy of an 8B model.
_LARGEST_ARTIFACT_BYTES = 64 * 2**20
# MLflow takes at most 1,000 items in one request.
_BATCH = 500


class Tracker:
    """The MLflow store of one work directory.

    Args:    workdir: holds mlflow.db and mlartifacts/; made where it is missing.
             uri: a tracking server to use instead, for example `http://mlflow.example:5000`.
    """

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        home = workdir.resolve()
        self.ui_uri = uri or f"sqlite:///{workdir / 'mlflow.db'}"
        self._client = _client(uri or f"sqlite:///{home / 'mlflow.db'}")
        self._artifacts = None if uri else (home / "mlartifacts").as_uri()
        self.experiment_ids = {
            name: self._experiment(name)
            for name in (records.TRAIL, records.VARIANTS, records.AUTOSCALERS)
        }

    @contextmanager
    def pipeline_run(
        self, name: str, settings: Mapping[str, Any] | Value | None = None
    ) -> Iterator[PipelineRun]:
        """The parent run; the same name and settings go on with the run that is there.

        It ends as FINISHED, or as FAILED where an exception passes through.
        """
        values = settings.model_dump(mode="json") if isinstance(settings, Value) else settings
        run_id = self._open(records.of_pipeline(name, values or {}))
        status = "FAILED"
        try:
            yield PipelineRun(self, run_id)
            status = "FINISHED"
        finally:
            self._client.set_terminated(run_id, status=status)

    def runs(self, stage: str | None = None) -> pd.DataFrame:
        """One row per finished run: run_id, parent_run_id, name, stage, parameters, metrics, tags.

        A curve shows its last value. Of a name used twice, metrics win over parameters over tags.
        """
        condition = f"tags.stage = '{stage}'" if stage else "tags.stage != ''"
        rows = []
        for run in self._search(f"{condition} AND attributes.status = 'FINISHED'"):
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith(_INTERNAL)}
            head = {
                "run_id": run.info.run_id,
                "parent_run_id": run.data.tags.get(_PARENT),
                "name": run.info.run_name,
            }
            rows.append({**head, **tags, **run.data.params, **run.data.metrics})
        return pd.DataFrame(rows)

    def ui_command(self) -> str:
        """The shell command that opens the comparison pages."""
        return shlex.join(["mlflow", "ui", "--backend-store-uri", self.ui_uri])

    def compare_urls(self, server: str = "http://127.0.0.1:5000") -> dict[str, str]:
        """Pages of `mlflow ui` that compare at a glance: {'workbench-variants': url, ...}.

        Left to itself, `mlflow ui` opens an experiment on its page of chat traces.
        """
        view = "runs?workflowType=machine_learning&compareRunsMode=CHART"
        return {
            name: f"{server}/#/experiments/{experiment_id}/{view}"
            for name, experiment_id in self.experiment_ids.items()
            if name != records.TRAIL
        }

    def log(self, record: Record, parent: str) -> str:
        """Log a record under a parent, once, and return its run id.

        What a killed process left unfinished is dropped and logged again.
        """
        known = self._find(record, parent)
        if known and known.info.status == "FINISHED":
            return str(known.info.run_id)
        if known:
            self._client.delete_run(known.info.run_id)
        nested = {_NESTED_UNDER: parent} if record.experiment == records.TRAIL else {}
        run_id = self._create(record, {_PARENT: parent, **nested})
        self.add(run_id, record.metrics, record.curves)
        for path, text in record.texts.items():
            self._client.log_text(run_id, text, path)
        for artifact, folder in record.folders.items():
            self._copy(run_id, folder, artifact)
        self._client.set_terminated(run_id)
        return run_id

    def add(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        curves: Sequence[tuple[str, int, float]] = (),
    ) -> None:
        """Add metrics to a run, in as few requests as MLflow allows: each is a transaction."""
        from mlflow.entities import Metric

        points = [(name, 0, value) for name, value in metrics.items()] + list(curves)
        entries = [Metric(name, float(v), 0, step) for name, step, v in points if math.isfinite(v)]
        for at in range(0, len(entries), _BATCH):
            self._client.log_batch(run_id, entries[at : at + _BATCH])

    def attach(self, run_id: str, path: Path) -> None:
        """Add a file to a run's artifacts."""
        self._client.log_artifact(run_id, str(path))

    def _experiment(self, name: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known:
            return str(known.experiment_id)
        return str(self._client.create_experiment(name, self._artifacts))

    def _open(self, record: Record) -> str:
        known = self._find(record)
        if known is None:
            return self._create(record, {})
        self._client.update_run(known.info.run_id, status="RUNNING")
        return str(known.info.run_id)

    def _create(self, record: Record, tags: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        every = {**record.tags, **tags, _KEY: record.key(), "stage": record.stage}
        every["mlflow.source.name"] = "workbench"
        experiment_id = self.experiment_ids[record.experiment]
        run = self._client.create_run(experiment_id, tags=every, run_name=record.name)
        params = [Param(name, text) for name, text in record.params.items()]
        self._client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

    def _copy(self, run_id: str, folder: Path, artifact: str) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        small = [path for path in files if path.stat().st_size <= _LARGEST_ARTIFACT_BYTES]
        if len(small) == len(files):
            self._client.log_artifacts(run_id, str(folder), artifact)
            return
        for path in small:
            inside = Path(artifact, path.parent.relative_to(folder)).as_posix()
            self._client.log_artifact(run_id, str(path), inside)

    def _find(self, record: Record, parent: str | None = None) -> Run | None:
        under = f" AND tags.`{_PARENT}` = '{parent}'" if parent else ""
        found = self._search(f"tags.`{_KEY}` = '{record.key()}'{under}")
        return found[0] if found else None

    def _search(self, condition: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                list(self.experiment_ids.values()), condition, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found


class PipelineRun:
    """An open parent run: each method logs one result as a child and returns its run id."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self.run_id = run_id
        self._tracker = tracker

    def variant(self, variant: Variant) -> str:
        """Size and quality of a variant."""
        return self._log(records.of_variant(variant))

    def measurement(self, measurement: Measurement, folder: Path | None = None) -> str:
        """One measurement, with what `Measurement.write` wrote to `folder`."""
        return self._log(records.of_measurement(measurement, folder))

    def sweeps(self, measurements: Sequence[Measurement]) -> list[str]:
        """One run per variant and mode, to compare: curves over batch size or rate."""
        return [self._log(record) for record in records.of_sweeps(measurements)]

    def fit(self, model: LatencyModel) -> str:
        """Coefficients and held-out errors of a latency model."""
        return self._log(records.of_latency_model(model))

    def tune(self, tuning: Tuning) -> str:
        """Baselines and winner, to compare, and the search, whose run id is returned."""
        return [self._log(record) for record in records.of_tuning(tuning)][-1]

    def export(self, bundle: Path, plan: Plan) -> str:
        """The exported bundle; files above 64 MiB are listed, not copied."""
        return self._log(records.of_bundle(bundle, plan))

    def verify(self, verification: Verification) -> str:
        """Predicted against measured."""
        return self._log(records.of_verification(verification))

    def artifact(self, path: Path) -> None:
        """Attach a file to the parent run, for example the report."""
        self._tracker.attach(self.run_id, path)

    def metrics(self, metrics: Mapping[str, float]) -> None:
        """Headline numbers of the whole run, to compare pipeline runs by."""
        self._tracker.add(self.run_id, metrics)

    def _log(self, record: Record) -> str:
        return self._tracker.log(record, self.run_id)


def _client(uri: str) -> MlflowClient:
    """A client whose database exists.

    Making it runs some forty migrations, each of which would be a line on the terminal.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    levels = {name: logging.getLogger(name).level for name in ("mlflow", "alembic")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
