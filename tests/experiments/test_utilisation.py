"""What signals say of a load: against a GPU whose utilisation is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import __file__ as experiments_file
from experiments import utilisation
from serving.plan import EngineArgs, Variant
from workbench.measure import FakeEngine, Measurement, Study, StudyResult, measure
from workbench.measure.points import Point
from workbench.measure.telemetry import HOST
from workbench.model import shipped_checkpoint

ENGINE = EngineArgs(max_model_len=256, max_num_seqs=8, max_num_batched_tokens=256)
VARIANT = Variant(name="bf16", model=str(shipped_checkpoint()))
STUDY = Study(
    name="utilisation",
    question="What does it say?",
    mode="server",
    engine=ENGINE,
    lengths=((32, 8),),
    concurrency=(1,),
    rates_rps=(40, 10, 20),
    duration_s=20,
    warmup_s=2,
    least_requests=30,
)
SHARE = {None: 1.0, 10.0: 0.5, 20.0: 0.9, 40.0: 1.0}
"""Rate -> the utilisation that the made-up GPU reads."""


def on_a_gpu(measured: Measurement) -> Measurement:
    """The same with samples of a GPU that is busy for a known share of each second."""
    t_s = np.arange(0, 30, 0.1)
    busy = (np.floor(t_s * 10) % 10 < 10 * SHARE[measured.rate_rps]).astype(float)
    frame = pd.DataFrame(
        {
            "t_s": t_s,
            "gpu": 0,
            "gpu_utilisation": busy,
            "memory_utilisation": busy / 2,
            "memory_used_bytes": 2.0**35,
            "power_w": 100 + 100 * busy,
        }
    )
    host = frame.assign(gpu=HOST, gpu_utilisation=0.0, power_w=np.nan)
    return replace(measured, telemetry=pd.concat([frame, host]))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    folder = tmp_path_factory.mktemp("utilisation")

    def run(point: Point) -> Measurement:
        engine = FakeEngine(VARIANT, ENGINE, seed=1)
        with engine:
            return measure(
                VARIANT, point.workload, engine_args=ENGINE, folder=folder, engine=engine
            )

    (points,) = STUDY.points([VARIANT])
    return StudyResult(STUDY, [on_a_gpu(run(point)) for point in points], [])


def test_the_utilisation_of_a_load_is_that_of_the_gpu_while_it_was_on(result: StudyResult) -> None:
    table = utilisation.signals(result)
    assert table["load"].tolist() == ["1 user", "10/s", "20/s", "40/s"]
    np.testing.assert_allclose(table["utilisation"], [1.0, 0.5, 0.9, 1.0], atol=0.02)
    inside = table[["utilisation_low", "utilisation", "utilisation_high"]].dropna()
    assert len(inside) >= 3
    assert (inside.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (table["memory_gib"] == 32).all()


def test_running_sequences_are_those_of_littles_law(result: StudyResult) -> None:
    table = utilisation.signals(result).set_index("load")
    assert table.loc["1 user", "running"] == pytest.approx(1.0, abs=0.15)
    for measured in result.measurements[1:]:
        in_flight = measured.rate_rps * measured.latencies()["e2e_s"].mean()
        row = table.loc[f"{measured.rate_rps:g}/s"]
        assert row["running"] + row["waiting"] == pytest.approx(in_flight, rel=0.25)


def test_the_rate_at_which_a_share_is_passed_lies_between_the_points(result: StudyResult) -> None:
    table = utilisation.signals(result)
    assert utilisation.reached(table, 0.7) == pytest.approx(15.0, abs=0.5)
    assert np.isnan(utilisation.reached(table, 0.3))
    assert np.isnan(utilisation.reached(table[table["utilisation"] < 0.95], 0.95))
    said = utilisation.answer(table)
    assert "passes 70% at 15 requests a second" in said
    assert "From 20 to 40 it goes from" in said


def test_without_a_gpu_nothing_is_said_of_it(result: StudyResult) -> None:
    bare = [replace(m, telemetry=m.telemetry.query("gpu == -1")) for m in result.measurements]
    table = utilisation.signals(replace(result, measurements=bare))
    assert utilisation.answer(table) == "No GPU was sampled: utilisation is not known."
    assert len(utilisation.figures(table)) == 2


def test_the_figures_show_the_points(result: StudyResult) -> None:
    table = utilisation.signals(result)
    shares, latency = utilisation.figures(table)
    shown = {trace.name.split(" (")[0]: trace for trace in shares.data}
    np.testing.assert_allclose(shown["GPU utilisation"].y, 100 * table["utilisation"][1:])
    assert max(shown["power"].y) == pytest.approx(100)
    np.testing.assert_allclose(latency.data[1].y, 1e3 * table["ttft_p99_s"][1:])


def test_the_study_as_declared_counts_enough_requests_at_every_load() -> None:
    declared = Study.load(Path(experiments_file).with_name("utilisation.yaml"))
    (points,) = declared.points([VARIANT])
    closed, slow = points[0].workload, points[-1].workload
    assert closed.arrivals.requests == 40
    assert slow.duration_s == 2 + 40 / 0.5
    assert {p.workload.duration_s for p in points[4:-1]} == {22.0}
