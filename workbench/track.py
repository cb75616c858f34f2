"""Leave a trail of every stage in MLflow; the only module that knows it.

One experiment, one parent run per pipeline run, one child run per stage result. Metric names are the
same for every variant, so that the chart view of `mlflow ui` compares variants at a glance; `variant`
is a parameter and the tag `stage` says what a run is. What holds several values along one axis (batch
sizes, rates, trials) is logged with that axis as the metric's step and is drawn as a curve.

Everything lies under the work directory: `mlflow.db` and `mlartifacts/`. A result that was logged before
is recognised by its content, so a resumed pipeline adds nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.plan import Plan, Variant
from serving.values import Estimate, Value
from simulations.latency import LatencyModel
from simulations.traffic import ClosedLoop, Day, Workload

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from workbench.measure import Measurement
    from workbench.tune import Tuning
    from workbench.verify import Verification

EXPERIMENT = "workbench"
_KEY = "workbench.key"
_PARENT = "mlflow.parentRunId"
# Weights stay where they are: an artifact store is no place for a second copy of an 8B model.
_LARGEST_ARTIFACT_BYTES = 64 * 2**20
_BATCH = 500
"""Metrics per request; MLflow takes at most 1,000 items in one."""


@dataclass(frozen=True)
class _Record:
    """What one child run will hold. `curves` are (metric, step, value)."""

    stage: str
    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[tuple[str, int, float]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Artifact folder -> what is copied into it. Not part of the identity."""

    def key(self) -> str:
        identity = [self.stage, self.name, self.params, self.metrics, self.tags]
        content = json.dumps([*identity, self.curves, self.texts], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


class Tracker:
    """The MLflow store of one work directory.

    Args:    workdir: holds mlflow.db and mlartifacts/; made where it is missing.
             uri: a tracking server to use instead, for example `http://mlflow.example:5000`.
    """

    def __init__(self, workdir: Path, uri: str | None = None) -> None:
        self.workdir = workdir
        workdir.mkdir(parents=True, exist_ok=True)
        home = workdir.resolve()
        self.uri = uri or f"sqlite:///{home / 'mlflow.db'}"
        self._artifacts = None if uri else (home / "mlartifacts").as_uri()
        self._client = _client(self.uri)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        self.experiment_id: str = (
            known.experiment_id
            if known
            else self._client.create_experiment(EXPERIMENT, artifact_location=self._artifacts)
        )

    @contextmanager
    def pipeline_run(
        self, name: str, settings: Mapping[str, Any] | Value | None = None
    ) -> Iterator[PipelineRun]:
        """The parent run; the same name and settings go on with the run that is there.

        It ends as FINISHED, or as FAILED where an exception passes through.
        """
        params = _flat(settings.model_dump(mode="json") if isinstance(settings, Value) else settings)
        key = _Record("pipeline", name, params, {}).key()
        run = self._find(key)
        if run is None:
            tags = {"stage": "pipeline", _KEY: key, "mlflow.source.name": "workbench"}
            run = self._client.create_run(self.experiment_id, tags=tags, run_name=name)
            _log(self._client, run.info.run_id, params)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        status = "FAILED"
        try:
            yield PipelineRun(self, run.info.run_id)
            status = "FINISHED"
        finally:
            self._client.set_terminated(run.info.run_id, status=status)

    def runs(self, stage: str | None = None) -> pd.DataFrame:
        """One row per finished run: run_id, parent_run_id, name, stage, parameters, metrics, tags.

        Curves show their last value. Where a tag has the name of a parameter or metric, it is left out.
        """
        condition = f"tags.stage = '{stage}'" if stage else "tags.stage != ''"
        rows = []
        for run in self._search(f"{condition} AND attributes.status = 'FINISHED'"):
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith(("mlflow.", _KEY))}
            head = {
                "run_id": run.info.run_id,
                "parent_run_id": run.data.tags.get(_PARENT),
                "name": run.info.run_name,
            }
            rows.append({**head, **tags, **run.data.params, **run.data.metrics})
        return pd.DataFrame(rows)

    def ui_command(self) -> str:
        """The shell command that opens the comparison pages."""
        store = self.uri if self._artifacts is None else f"sqlite:///{self.workdir / 'mlflow.db'}"
        return shlex.join(["mlflow", "ui", "--backend-store-uri", store])

    def _search(self, condition: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self.experiment_id], condition, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _find(self, key: str, parent: str | None = None) -> Run | None:
        under = f" AND tags.`{_PARENT}` = '{parent}'" if parent else ""
        found = self._search(f"tags.`{_KEY}` = '{key}'{under}")
        return found[0] if found else None

    def _child(self, parent: str, record: _Record) -> str:
        """Log a record once. What a killed process left unfinished is dropped and logged again."""
        from mlflow.entities import RunStatus

        key = record.key()
        known = self._find(key, parent)
        if known and known.info.status == RunStatus.to_string(RunStatus.FINISHED):
            return str(known.info.run_id)
        if known:
            self._client.delete_run(known.info.run_id)
        tags = {_PARENT: parent, _KEY: key, "stage": record.stage, **record.tags}
        tags["mlflow.source.name"] = "workbench"
        run = self._client.create_run(self.experiment_id, tags=tags, run_name=record.name)
        run_id = str(run.info.run_id)
        _log(self._client, run_id, record.params, record.metrics, record.curves)
        for path, text in record.texts.items():
            self._client.log_text(run_id, text, path)
        for artifact, folder in record.folders.items():
            _copy(self._client, run_id, folder, artifact)
        self._client.set_terminated(run_id)
        return run_id


class PipelineRun:
    """An open parent run; each method logs one result as a child and returns its run id."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self.run_id = run_id
        self._tracker = tracker

    def variant(self, variant: Variant) -> str:
        """Size and quality of a variant."""
        quality = dict(variant.quality) if variant.quality else {}
        metrics = {"size_mib": variant.size_mib, **_estimates(quality)}
        params = {
            **_flat(variant.model_dump(mode="json", exclude={"quality", "size_bytes", "name"})),
            "variant": variant.name,
        }
        texts = {"variant.json": variant.model_dump_json(indent=2)}
        return self._log(_Record("compress", variant.name, params, metrics, texts=texts))

    def measurement(self, measurement: Measurement, folder: Path | None = None) -> str:
        """One measurement: its load and engine, every latency metric, and its files.

        Args:    folder: what `Measurement.write` wrote; copied as the artifact `measurement`.
        """
        load, level = load_of(measurement.workload)
        params = {
            "variant": measurement.variant.name,
            "mode": measurement.mode,
            load: level,
            **_lengths(measurement.workload),
            "seed": measurement.workload.seed,
            "duration_s": measurement.workload.duration_s,
            **_flat(measurement.engine.kwargs(), "engine."),
        }
        tags = {
            "hardware": measurement.environment.hardware,
            "python": measurement.environment.python,
            **{f"version.{k}": v for k, v in measurement.environment.versions.items()},
            "valid": "no: " + "; ".join(measurement.invalid) if measurement.invalid else "yes",
        }
        metrics = {
            **measurement.summary(),
            "start_s": measurement.replica.start_s,
            "kv_blocks": measurement.replica.kv_blocks,
        }
        folders = {"measurement": folder} if folder else {}
        record = _Record("measure", measurement.name, params, metrics, tags, folders=folders)
        return self._log(record)

    def sweep(self, measurements: Sequence[Measurement]) -> list[str]:
        """One run per variant and mode, whose metrics are curves over batch size or rate.

        The step is the batch size, or the rate in requests a second, rounded.
        """
        groups: dict[tuple[str, str, str], list[tuple[int, Measurement]]] = {}
        for measurement in measurements:
            load, level = load_of(measurement.workload)
            group = (measurement.variant.name, measurement.mode, load)
            groups.setdefault(group, []).append((round(level), measurement))
        ids = []
        for (variant, mode, load), points in groups.items():
            points.sort(key=lambda point: point[0])
            curves = [(k, at, v) for at, m in points for k, v in m.summary().items()]
            params = {"variant": variant, "mode": mode, "step": load, "points": len(points)}
            name = f"{variant} {mode} by {load}"
            ids.append(self._log(_Record("sweep", name, params, {}, curves=curves)))
        return ids

    def fit(self, model: LatencyModel) -> str:
        """Coefficients, cold start and held-out errors of a latency model."""
        values = model.model_dump()
        coefficients = {k: v for k, v in values.items() if k.endswith("_s")}
        metrics = {
            **coefficients,
            "n_steps": model.n_steps,
            "cold_start_s": model.cold_start.total_s,
            **_estimates(model.heldout_error, "heldout_error."),
        }
        params = {"variant": model.variant, **_flat(values["fitted_range"], "fitted_range.")}
        tags = {"source": model.source, "cold_start_source": model.cold_start.source}
        texts = {"latency_model.json": model.model_dump_json(indent=2)}
        return self._log(_Record("fit", model.variant, params, metrics, tags, texts=texts))

    def tune(self, tuning: Tuning) -> str:
        """The winner and each baseline under the same metric names; the trials as curves."""
        for row in tuning.baselines.to_dict("records"):
            params = {"candidate": row["name"]}
            metrics = {str(k): v for k, v in row.items() if _is_number(v)}
            self._log(_Record("baseline", str(row["name"]), params, metrics))
        curves = [
            (f"trial.{column}", int(trial["number"]), trial[column])
            for trial in tuning.trials.to_dict("records")
            for column in ("gpu_hours", "ttft_p99_s", "keeps_slo")
            if _is_number(trial.get(column))
        ]
        metrics = {
            **_estimates(tuning.winner_result.metrics),
            "keeps_slo": float(tuning.winner_result.keeps_slo),
        }
        texts = {
            "plan.json": tuning.winner.model_dump_json(indent=2),
            "prediction.json": tuning.prediction.model_dump_json(indent=2),
            "trials.csv": tuning.trials.to_csv(index=False),
            "baselines.csv": tuning.baselines.to_csv(index=False),
        }
        params = {"candidate": "winner", **plan_params(tuning.winner)}
        return self._log(
            _Record("tune", tuning.winner.name, params, metrics, curves=curves, texts=texts)
        )

    def export(self, bundle: Path, plan: Plan) -> str:
        """The exported bundle, as the artifact `bundle`."""
        files = {
            str(path.relative_to(bundle)): path.stat().st_size
            for path in sorted(bundle.rglob("*"))
            if path.is_file()
        }
        metrics = {"files": float(len(files)), "bytes": float(sum(files.values()))}
        texts = {"files.json": json.dumps(files, indent=2)}
        params = {"bundle": bundle.name, **plan_params(plan)}
        return self._log(
            _Record("export", bundle.name, params, metrics, texts=texts, folders={"bundle": bundle})
        )

    def verify(self, verification: Verification) -> str:
        """Predicted and measured of each metric, and whether the prediction was true."""
        metrics = {"holds": float(verification.holds)}
        for row in verification.rows.to_dict("records"):
            for column in ("predicted", "measured", "relative_error"):
                metrics[f"{column}/{row['metric']}"] = float(row[column])
        texts = {"rows.csv": verification.rows.to_csv(index=False)}
        return self._log(_Record("verify", "verify", {}, metrics, texts=texts))

    def artifact(self, path: Path) -> None:
        """Attach a file to the parent run, for example the report."""
        self._tracker._client.log_artifact(self.run_id, str(path))

    def metrics(self, metrics: Mapping[str, float]) -> None:
        """Headline numbers of the whole run, to compare pipeline runs by."""
        _log(self._tracker._client, self.run_id, {}, metrics)

    def _log(self, record: _Record) -> str:
        return self._tracker._child(self.run_id, record)


def load_of(workload: Workload) -> tuple[str, float]:
    """What a sweep varies: ('batch', concurrency) of a closed loop, else ('rate_rps', rate)."""
    arrivals = workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        return "batch", arrivals.concurrency
    return "rate_rps", arrivals.peak_rps if isinstance(arrivals, Day) else arrivals.rate_rps


def plan_params(plan: Plan) -> dict[str, str]:
    """A plan as flat parameters, without what belongs to the variant's own run."""
    keep = plan.model_dump(mode="json", exclude={"variant", "schema_version"}, exclude_none=True)
    return {"variant": plan.variant.name, **_flat(keep)}


def _client(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    # Making the database runs some forty migrations, each of which would be a line on the terminal.
    silenced: list[tuple[logging.Logger, int]] = []
    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logger = logging.getLogger(name)
        silenced.append((logger, logger.level))
        logger.setLevel(logging.WARNING)
    try:
        # The client opens its store on first use: do that while the loggers are quiet.
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client
    finally:
        for logger, level in silenced:
            logger.setLevel(level)


def _log(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    curves: Sequence[tuple[str, int, float]] = (),
) -> None:
    """Everything in as few requests as MLflow allows: each is a transaction on disk."""
    from mlflow.entities import Metric, Param

    points = [(name, 0, value) for name, value in (metrics or {}).items()] + list(curves)
    # MLflow sorts the values of one step by time; all points of a run share one.
    entries = [Metric(name, float(v), 0, step) for name, step, v in points if math.isfinite(v)]
    texts = [Param(name, _text(value)) for name, value in params.items()]
    for at in range(0, max(len(entries), 1), _BATCH):
        client.log_batch(run_id, entries[at : at + _BATCH], texts if at == 0 else [])


def _copy(client: MlflowClient, run_id: str, folder: Path, artifact: str) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if all(path.stat().st_size <= _LARGEST_ARTIFACT_BYTES for path in files):
        client.log_artifacts(run_id, str(folder), artifact)
        return
    for path in files:
        if path.stat().st_size <= _LARGEST_ARTIFACT_BYTES:
            inside = (Path(artifact) / path.parent.relative_to(folder)).as_posix()
            client.log_artifact(run_id, str(path), inside)


def _estimates(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Each estimate as its value, with its interval in the chart sections `low` and `high`."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            flat[prefix + name] = value.value
            flat[f"low/{prefix}{name}"] = value.low
            flat[f"high/{prefix}{name}"] = value.high
        elif _is_number(value):
            flat[prefix + name] = float(value)
    return flat


def _lengths(workload: Workload) -> dict[str, str]:
    pair = {"prompt_tokens": workload.prompt_tokens, "output_tokens": workload.output_tokens}
    return {
        name: str(law.tokens) if law.kind == "fixed" else f"{law.kind} median {law.median_tokens:g}"
        f" mean {law.mean_tokens:g} in {law.min_tokens}..{law.max_tokens}"
        for name, law in pair.items()
    }


def _flat(values: Mapping[str, Any] | None, prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names."""
    flat: dict[str, str] = {}
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 500 else text[:497] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not pd.isna(value)


