"""A store that is quickly made, and a study on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from serving.plan import EngineArgs
from simulations.traffic import ClosedLoop, Fixed, Workload
from workbench.measure.points import Failure
from workbench.measure.study import Study, StudyResult
from workbench.track import Tracker

if TYPE_CHECKING:
    from conftest import Results

    from workbench.measure import Measurement


@pytest.fixture(autouse=True, scope="session")
def _no_store_of_the_user() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them."""
    from workbench.track.reach import connect

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def workdir(template: Path, tmp_path: Path) -> Path:
    """A work directory with an empty store."""
    home = tmp_path / "my runs"
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    return home


@pytest.fixture
def tracker(workdir: Path) -> Tracker:
    return Tracker(workdir)


MakeStudy = Callable[..., tuple[StudyResult, Path]]


@pytest.fixture
def make_study(results: Results, tmp_path: Path) -> MakeStudy:
    """Measured points and a failed one, written as `run_study` leaves them."""

    def make(
        name: str = "batching", points: int = 2, under: Path | None = None
    ) -> tuple[StudyResult, Path]:
        folder = (under or tmp_path) / "studies" / name
        study = Study(
            name=name,
            question="Does a larger batch pay?",
            engine_grid={"max_num_seqs": (8, 32)},
            concurrency=(1, 4),
        )
        study.write(folder / "study.json")
        measured = [replace(m, telemetry=telemetry()) for m in results.measurements[:points]]
        for point in measured:
            point.write(folder / point.name)
        failure = failed(measured[0])
        failure.write(folder / failure.name / "failed.json")
        (folder / "figure.html").write_text("<html>a figure</html>")
        return StudyResult(study=study, measurements=measured, failures=[failure]), folder

    return make


def failed(like: Measurement) -> Failure:
    return Failure(
        name="parent-batch64",
        variant=like.variant,
        engine=EngineArgs(max_model_len=512),
        workload=Workload(
            arrivals=ClosedLoop(concurrency=64, requests=128),
            prompt_tokens=Fixed(tokens=64),
            output_tokens=Fixed(tokens=64),
        ),
        cause="out of memory: 3 GiB of KV cache do not fit",
        remedy="Lower max_model_len.",
    )


@pytest.fixture
def two_gpus() -> pd.DataFrame:
    return telemetry()


def telemetry(samples: int = 250) -> pd.DataFrame:
    """Two GPUs and the host, five samples a second; GPU 1 has no counter of power."""
    rows = []
    for sample in range(samples):
        t_s = sample / 5
        rows += [
            {
                "t_s": t_s,
                "gpu": gpu,
                "gpu_utilisation": 0.5,
                "memory_used_bytes": 2e9 * (gpu + 1),
                "power_w": 300.0 if gpu == 0 else float("nan"),
                "temperature_c": 61.0,
            }
            for gpu in (0, 1)
        ]
        rows.append({"t_s": t_s, "gpu": -1, "cpu_utilisation": 0.25, "host_memory_used_bytes": 8e9})
    unknown = ["memory_utilisation", "memory_total_bytes", "energy_j", "sm_clock_mhz"]
    table = pd.DataFrame(rows)
    return table.assign(**dict.fromkeys(unknown, float("nan")), throttle=None)
