"""A plan in MLflow's model registry: a pyfunc that predicts latency and cost for a load."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import simulations
from serving.plan import Plan
from simulations.latency import LatencyModel
from simulations.plan_model import RATE
from simulations.traffic import Workload

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED = "workbench-plan"
"""The registered model; each exported plan is a version of it."""
ARTIFACT = "model"
_SECONDS = tuple(f"{name}_{q}_s" for name in ("ttft", "tpot", "e2e") for q in ("p50", "p99"))
_NEEDS = ("numba", "numpy", "pandas", "pydantic", "pyyaml", "scipy", "simpy")


def register(
    client: MlflowClient, run_id: str, plan: Plan, latency: LatencyModel, workload: Workload
) -> str:
    """Save the plan as a model of a run and register it; returns the version, once per run."""
    from mlflow.exceptions import MlflowException

    known = client.search_model_versions(f"name = '{REGISTERED}' and run_id = '{run_id}'")
    if known:
        return str(known[0].version)
    with TemporaryDirectory() as scratch:
        model = save_model(Path(scratch) / ARTIFACT, plan, latency, workload)
        client.log_artifacts(run_id, str(model), ARTIFACT)
    try:
        client.create_registered_model(
            REGISTERED, description="Exported plans: a load in, latency and cost out."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT}"
    tags = {"plan": plan.name, "variant": plan.variant.name}
    made = client.create_model_version(REGISTERED, source, run_id, tags=tags)
    return str(made.version)


def save_model(folder: Path, plan: Plan, latency: LatencyModel, workload: Workload) -> Path:
    """Write an MLflow model that needs the twin's code, which it carries, and no pickle."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec("double", RATE)]),
        Schema(
            [
                ColSpec("long", "replicas"),
                ColSpec("boolean", "keeps_slo"),
                *(ColSpec("double", f"usd_per_{of}") for of in ("hour", "million_output_tokens")),
                *(ColSpec("double", name) for name in _SECONDS),
            ]
        ),
    )
    code = Path(simulations.__file__).parent
    with TemporaryDirectory() as scratch:
        data = Path(scratch) / "plan"
        plan.write(data / "plan.json")
        latency.write(data / "latency.json")
        workload.write(data / "workload.json")
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module="simulations.plan_model",
            data_path=str(data),
            code_paths=[str(code), str(code.parent / "serving")],
            signature=signature,
            input_example=pd.DataFrame({RATE: [10.0]}),
            pip_requirements=list(_NEEDS),
        )
    return folder
