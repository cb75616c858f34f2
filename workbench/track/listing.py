"""Runs of a store as a table, found by MLflow's own filters."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.errors import InputError
from workbench.track.reach import chosen_uri, connect
from workbench.track.record import TRAIL
from workbench.track.studies import experiment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FILTER_EXAMPLE = "metrics.ttft_p99_s < 0.2 and params.variant = 'int8'"
_PAGE = 1000
_INTERNAL = ("mlflow.", "workbench.")


def list_runs(
    workdir: Path,
    *,
    stage: str | None = None,
    study: str | None = None,
    condition: str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """One row per run, the newest first: what it is, its tags, parameters and metrics.

    Columns that every row has: run_id, name, experiment, stage, status, when (local time), load
    ("batch 8", "4 rps", or empty), valid ("yes", "no: " with the reasons, "failed: " with the cause,
    or empty). Of a name used twice, metrics win over parameters over tags.

    Args:    condition: in MLflow's filter syntax; names are those of `metrics.`, `params.`, `tags.`.
             limit: at most so many; None is all.
    Raises:  InputError: a bad condition, or a study that the store does not have.
             what the store raises (see `reached`).
    """
    home = workdir.resolve()
    uri, own = chosen_uri(home), home / "mlflow.db"
    if uri.endswith(f"///{own}") and not own.exists():
        return pd.DataFrame()  # to look is no reason to make one
    client = connect(uri, write=False)
    names = _experiments(client, study)
    parts = [f"tags.stage = '{stage}'"] if stage else []
    parts += [condition] if condition else []
    found = _search(client, list(names), " and ".join(parts), limit, condition)
    return pd.DataFrame([_row(run, names[run.info.experiment_id]) for run in found])


def _experiments(client: MlflowClient, study: str | None) -> dict[str, str]:
    """Id -> name of the workbench's experiments, or of the one of a study."""
    every = client.search_experiments(filter_string=f"name LIKE '{TRAIL}%'")
    names = {str(one.experiment_id): str(one.name) for one in every}
    if study is None:
        return names
    chosen = {key: name for key, name in names.items() if name == experiment_of(study)}
    if not chosen:
        raise InputError(
            f"--study(={study!r}) has no experiment {experiment_of(study)!r} in the store",
            remedy="`workbench runs --stage study` lists those it has.",
        )
    return chosen


def _search(
    client: MlflowClient,
    experiments: list[str],
    filters: str,
    limit: int | None,
    condition: str | None,
) -> list[Run]:
    from mlflow.exceptions import MlflowException

    found: list[Run] = []
    token = None
    while experiments:
        room = _PAGE if limit is None else min(_PAGE, limit - len(found))
        try:
            page = client.search_runs(
                experiments,
                filters,
                max_results=room,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
        except MlflowException as error:
            if condition is None or error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            raise InputError(
                f"--filter(={condition!r}) is not a filter: {' '.join(str(error).split())}",
                remedy=f"Write for example {_FILTER_EXAMPLE!r}; conditions are joined by `and`.",
            ) from error
        found += page
        token = page.token
        if not token or (limit is not None and len(found) >= limit):
            break
    return found


def _row(run: Run, experiment: str) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    values = {name: text for name, text in tags.items() if not name.startswith(_INTERNAL)}
    values |= {**params, **run.data.metrics}
    status = str(run.info.status)
    failed = f"failed: {tags['cause']}" if "cause" in tags else ""
    return values | {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "experiment": experiment,
        "stage": tags.get("stage", ""),
        "status": status,
        "when": f"{datetime.fromtimestamp(run.info.start_time / 1000):%Y-%m-%d %H:%M}",
        "load": _load(params),
        "valid": failed or tags.get("valid", ""),
    }


def _load(params: dict[str, str]) -> str:
    if "batch" in params:
        return f"batch {params['batch']}"
    return f"{params['rate_rps']} rps" if "rate_rps" in params else ""
