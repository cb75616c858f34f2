"""Evidence as the stages give it: whose it is, how old it is, and of one version of vLLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from serving.errors import BundleError
from simulations.simulate import simulate
from workbench.bundle_evidence import Evidence, digest
from workbench.export import check, export
from workbench.measure import Measurement
from workbench.tune import Tuning

from .bundles import LOAD, latency, plan, prediction

H100 = Path("experiments/results/h100/fidelity/calibration/llama-8b-mixed-batch1")


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    result = simulate(plan(), LOAD, latency(), seeds=(0, 1), force=True)
    rows = pd.DataFrame([{"name": "static", "gpu_hours": 24.0, "keeps_slo": True}])
    return Tuning(plan(), result, prediction(), trials=pd.DataFrame(), baselines=rows)


def measured(*, day: int, vllm: str) -> Measurement:
    found = Measurement.read(H100)
    at = found.environment.model_copy(
        update={"started_at": f"2026-11-{day:02}T10:00:00+00:00", "versions": {"vllm": vllm}}
    )
    return replace(found, name=f"of-day-{day}", environment=at)


def test_it_is_of_the_winner_and_as_old_as_the_oldest_measurement(
    tuning: Tuning, tmp_path: Path
) -> None:
    points = [measured(day=21, vllm="0.30.0"), measured(day=19, vllm="0.30.0")]
    found = Evidence.of(
        measurements=points, latency=latency(), tuning=tuning, mlflow_run_ids=("run-1",)
    )
    assert found.plan_sha256 == digest(tuning.winner)
    assert found.measured_at == "2026-11-19T10:00:00+00:00"
    assert found.versions == {"vllm": "0.30.0"}
    assert "H100" in found.hardware
    assert [row["name"] for row in found.fleets] == ["winner", "static"]
    bundle = export(tuning.winner, tmp_path / "b", evidence=found, force=True, max_age_days=1e5)
    check(bundle)
    page = (bundle / "EVIDENCE.md").read_text()
    assert "from 2026-11-19T10:00:00+00:00 on" in page
    assert "of-day-21" in page


def test_measurements_of_two_versions_of_vllm_make_no_evidence(tuning: Tuning) -> None:
    points = [measured(day=21, vllm="0.30.0"), measured(day=22, vllm="0.31.0")]
    with pytest.raises(BundleError, match=r"measured with vllm 0\.30\.0 and 0\.31\.0"):
        Evidence.of(measurements=points, latency=latency(), tuning=tuning)
