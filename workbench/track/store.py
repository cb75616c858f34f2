"""The MLflow store of a work directory: parent runs, child runs, each logged once."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from serving.values import Value
from workbench.track import records, studies, traces
from workbench.track.origin import here
from workbench.track.pipeline_run import PipelineRun
from workbench.track.reach import chosen_uri, connect, is_database, reason
from workbench.track.record import AUTOSCALERS, FLAT, POINTS, TRAIL, VARIANTS, Record, cut

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from serving.plan import Plan, Variant
    from simulations.latency import LatencyModel
    from simulations.traffic import Workload
    from workbench.measure import Measurement
    from workbench.measure.study import StudyResult
    from workbench.verify import Verification

_KEY = "workbench.key"
_PARENT = "workbench.parent"
_NESTED_UNDER = "mlflow.parentRunId"
_INTERNAL = ("mlflow.", _KEY, _PARENT)
# Weights stay where they are: an artifact store is no place for a second copy of an 8B model.
_LARGEST_ARTIFACT_BYTES = 64 * 2**20
# MLflow takes at most 1,000 items in one request, of them 100 parameters.
_BATCH = 500
# A tag holds 8,000 characters, which some 60 runs to compare take.
_LONGEST_LINK = 3_500
_PARAMS = 100


class Tracker:
    """The MLflow store of one work directory.

    Args:    workdir: holds mlflow.db and mlartifacts/; made where it is missing.
             uri: another store, for example `http://mlflow.example:5000`; None is that of
             MLFLOW_TRACKING_URI, or else the work directory's own.
             on_run: called with the name of each run before it is looked for.
    """

    def __init__(
        self,
        workdir: Path,
        uri: str | None = None,
        on_run: Callable[[str], None] | None = None,
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        home = workdir.resolve()
        self.ui_uri = chosen_uri(workdir, uri)
        self.added = 0
        """How many runs were made."""
        self.known = 0
        """How many were there already."""
        self._on_run = on_run
        here_uri = chosen_uri(home, uri)
        self._client = connect(here_uri)
        self._artifacts = (home / "mlartifacts").as_uri() if is_database(here_uri) else None
        self.experiment_ids: dict[str, str] = {}
        for name in (TRAIL, VARIANTS, AUTOSCALERS):
            self._experiment(name)

    @contextmanager
    def pipeline_run(
        self,
        name: str,
        settings: Mapping[str, Any] | Value | None = None,
        *,
        anywhere: bool = False,
    ) -> Iterator[PipelineRun]:
        """The parent run; the same name and settings go on with the run that is there.

        It ends as FINISHED, or as FAILED where an exception passes through.

        Args:    anywhere: what another parent holds is there as well, and is not logged again.
        """
        values = settings.model_dump(mode="json") if isinstance(settings, Value) else settings
        with self._parent_run(records.of_pipeline(name, values or {})) as run_id:
            yield PipelineRun(self, run_id, anywhere=anywhere)
            self._link(run_id)

    def study(self, result: StudyResult, folder: Path, figure: Path | None = None) -> str:
        """A study in an experiment of its own: a parent run, and below it a run per point.

        A point that failed is a FAILED run with the cause as a tag.

        Args:    folder: holds a folder per point; its files become artifacts.
                 figure: becomes an artifact of the parent.
        Returns: the parent's run id.
        """
        parent = studies.of_study(result)
        with self._parent_run(parent) as run_id:
            for record in studies.of_points(result, folder):
                self.log(record, run_id)
            counts = {"points": len(result.measurements), "failures": len(result.failures)}
            self.add(run_id, counts)
            if figure is not None:
                self.attach(run_id, figure)
        return run_id

    def load(self, measurement: Measurement, folder: Path | None = None) -> str:
        """A single load, with what `Measurement.write` wrote to `folder`; returns the run id."""
        return self.log(studies.of_load(measurement, folder))

    def variant(self, variant: Variant) -> str:
        """A variant that was made by itself; returns the run id."""
        return self.log(records.of_variant(variant))

    def verification(self, verification: Verification) -> str:
        """A bundle that was verified by itself, with its requests as traces; returns the run id."""
        return self.log(records.of_verification(verification))

    def comparison(self, folder: Path) -> str:
        """A paired comparison that lies in `folder`: a parent, and a run per measurement."""
        from workbench.measure.compare import Comparison

        found = Comparison.read(folder / "comparison.json")
        return self._group(studies.of_comparison(found, folder.name), folder)

    def capacity(self, folder: Path) -> str:
        """A search for the highest rate that lies in `folder`: a parent, and a run per measurement."""
        from workbench.measure.capacity import Capacity

        found = Capacity.read(folder / "capacity.json")
        return self._group(studies.of_capacity(found, folder.name), folder)

    def register(self, run_id: str, plan: Plan, latency: LatencyModel, workload: Workload) -> str:
        """A plan as a registered model of a run; returns the version (see `registry`)."""
        from workbench.track.registry import register

        return register(self._client, run_id, plan, latency, workload)

    def _group(self, parent: Record, folder: Path) -> str:
        from workbench.measure import Measurement

        with self._parent_run(parent) as run_id:
            for head in sorted(folder.glob("*/measurement.json")):
                measured = Measurement.read(head.parent)
                self.log(studies.of_run(measured, head.parent, parent), run_id)
            self.add(run_id, parent.metrics)
        return run_id

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

        'workbench-points offline' and '... server' are parallel coordinates of variant, load and cost.

        Left to itself, `mlflow ui` opens an experiment on its page of chat traces.
        """
        view = "runs?workflowType=machine_learning&compareRunsMode=CHART"
        pages = {
            name: f"{server}/#/experiments/{self.experiment_ids[name]}/{view}"
            for name in (VARIANTS, AUTOSCALERS)
        }
        known = self._client.get_experiment_by_name(POINTS)
        by_mode: dict[str, list[str]] = {}
        for run in self._client.search_runs([known.experiment_id]) if known else []:
            by_mode.setdefault(run.data.params["mode"], []).append(run.info.run_id)
        for mode, runs in by_mode.items():
            # This page draws parallel coordinates by itself, of parameters that all its runs have.
            asked = {"runs": runs, "experiments": [known.experiment_id]}
            query = "&".join(f"{key}={quote(json.dumps(ids))}" for key, ids in asked.items())
            pages[f"{POINTS} {mode}"] = f"{server}/#/compare-runs?{query}"
        return pages

    def _link(self, run_id: str) -> None:
        """Links to the pages that compare, on top of the run's own page."""
        pages = self.compare_urls(server="")
        links = [f"- [{name}]({url.removeprefix('/')})" for name, url in pages.items()]
        fitting = [link for link in links if len(link) <= _LONGEST_LINK]
        self._client.set_tag(run_id, "mlflow.note.content", "Compare:\n" + "\n".join(fitting))

    def log(self, record: Record, parent: str | None = None, *, anywhere: bool = False) -> str:
        """Log a record under a parent, once, and return its run id.

        What a killed process left unfinished is dropped and logged again.

        Args:    anywhere: a run of the same content under another parent counts as well.
        """
        if self._on_run is not None:
            self._on_run(record.name)
        known = self._find(record, None if anywhere else parent)
        if known and known.info.status == record.status:
            self.known += 1
            return str(known.info.run_id)
        if known:
            self._client.delete_run(known.info.run_id)
        under = {_PARENT: parent} if parent else {}
        if parent and record.experiment not in FLAT:
            under[_NESTED_UNDER] = parent
        run_id = self._create(record, under)
        self._describe(run_id, record)
        self.add(run_id, record.metrics, record.curves)
        self._add_system(run_id, record)
        for artifact, folder in record.folders.items():
            self._copy(run_id, folder, artifact)
        self._trace(run_id, record)
        end_ms = record.span_ms[1] if record.span_ms else None
        self._client.set_terminated(run_id, status=record.status, end_time=end_ms)
        self.added += 1
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
        self._send(run_id, [Metric(name, float(value), 0, step) for name, step, value in points])

    def attach(self, run_id: str, path: Path) -> None:
        """Add a file to a run's artifacts."""
        self._client.log_artifact(run_id, str(path))

    def _add_system(self, run_id: str, record: Record) -> None:
        from mlflow.entities import Metric

        steps: dict[str, int] = {}
        entries = []
        for name, time_ms, value in record.system:
            steps[name] = steps.get(name, -1) + 1
            entries.append(Metric(name, value, time_ms, steps[name]))
        self._send(run_id, entries)

    def _trace(self, run_id: str, record: Record) -> None:
        """Add the record's traces; a store that takes none keeps its runs, and a tag says so."""
        from mlflow.exceptions import MlflowException

        if not record.traces:
            return
        try:
            traces.write(self._client, self._experiment(record.experiment), run_id, record.traces)
            said = f"{len(record.traces)} requests"
        except (NotImplementedError, MlflowException) as error:
            said = f"none: {reason(error)}"
        self._client.set_tag(run_id, "traces", cut(said))

    def _send(self, run_id: str, entries: Sequence[Metric]) -> None:
        known = [entry for entry in entries if math.isfinite(entry.value)]
        for at in range(0, len(known), _BATCH):
            self._client.log_batch(run_id, known[at : at + _BATCH])

    def _experiment(self, name: str) -> str:
        if name not in self.experiment_ids:
            known = self._client.get_experiment_by_name(name)
            if known is None:
                made = self._client.create_experiment(name, self._artifacts)
            else:
                made = known.experiment_id
                if known.lifecycle_stage == "deleted":
                    # Its name stays taken, so that there is no other way to log.
                    self._client.restore_experiment(made)
            self.experiment_ids[name] = str(made)
        return self.experiment_ids[name]

    @contextmanager
    def _parent_run(self, record: Record) -> Iterator[str]:
        from mlflow.exceptions import MlflowException

        run_id = self._open(record)
        try:
            yield run_id
        except MlflowException:
            # The store failed: telling it so would wait for it once more.
            raise
        except BaseException:
            self._client.set_terminated(run_id, status="FAILED")
            raise
        self._client.set_terminated(run_id, status="FINISHED")

    def _open(self, record: Record) -> str:
        known = self._find(record)
        if known is None:
            self.added += 1
            run_id = self._create(record, {})
        else:
            self.known += 1
            run_id = str(known.info.run_id)
            self._client.update_run(run_id, status="RUNNING")
        # Also where it is known: a process may have died in between.
        self._describe(run_id, record)
        return run_id

    def _create(self, record: Record, tags: Mapping[str, str]) -> str:
        every = {**here(), **record.origin, **record.tags, **tags}
        every |= {_KEY: record.key(), "stage": record.stage, "mlflow.source.name": "workbench"}
        run = self._client.create_run(
            self._experiment(record.experiment),
            start_time=record.span_ms[0] if record.span_ms else None,
            tags=every,
            run_name=record.name,
        )
        return str(run.info.run_id)

    def _describe(self, run_id: str, record: Record) -> None:
        from mlflow.entities import Param

        params = [Param(name, text) for name, text in record.params.items()]
        for at in range(0, len(params), _PARAMS):
            self._client.log_batch(run_id, params=params[at : at + _PARAMS])
        for path, text in record.texts.items():
            self._client.log_text(run_id, text, path)

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
        """The run of this content; of several, one that is whole."""
        self._experiment(record.experiment)
        under = f" AND tags.`{_PARENT}` = '{parent}'" if parent else ""
        found = self._search(f"tags.`{_KEY}` = '{record.key()}'{under}")
        found.sort(key=lambda run: run.info.status != record.status)
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
