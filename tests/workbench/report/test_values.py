"""What every value looks like in a notebook: what it says, what speaks against it, and a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import workbench as wb
from serving.plan import EngineArgs, Slo
from serving.values import shown_html
from simulations.figures import thinned
from workbench.measure.capacity import Capacity
from workbench.measure.compare import Comparison
from workbench.payoff import Payoff

if TYPE_CHECKING:
    from conftest import Results


def test_what_is_shown_is_escaped_and_says_its_doubts() -> None:
    table = pd.DataFrame({"a<b": ["<i>"], "n": [1.23456]})
    shown = shown_html("x < y", table, doubts=("<late>",), notes=("a note",))
    assert shown.startswith("<b>x &lt; y</b><br>cannot be trusted: &lt;late&gt;<br>a note<table")
    assert "&lt;i&gt;" in shown
    assert "1.235" in shown
    assert shown_html("only words") == "<b>only words</b>"


@pytest.mark.parametrize("name", [name for name in wb.__all__ if name[0].isupper()])
def test_every_public_value_has_a_look_of_its_own(name: str) -> None:
    value = getattr(wb, name)
    assert hasattr(value, "_render_traceback_" if issubclass(value, Exception) else "_repr_html_")


def test_an_arm_shows_what_is_served_and_how() -> None:
    arm = wb.Arm("small <batches>", wb.Variant(name="bf16", model="m"), EngineArgs(max_num_seqs=8))
    shown = arm._repr_html_()
    assert shown.startswith("<b>small &lt;batches&gt;</b>")
    assert "bf16" in shown
    assert "max_num_seqs" in shown


def test_a_value_shows_what_was_chosen_and_counts_the_rest() -> None:
    shown = EngineArgs(max_model_len=512)._repr_html_()
    assert "max_model_len" in shown
    assert "max_num_seqs" not in shown
    assert "max_num_seqs" in EngineArgs()._repr_html_()
    assert f"{len(EngineArgs.model_fields) - 1} more at their defaults" in shown


def test_a_plan_shows_nested_values_as_words(results: Results) -> None:
    shown = results.tuning.winner._repr_html_()
    assert "ttft_p99_s 0.5" in shown
    assert "{" not in shown


def test_a_measurement_draws_the_share_of_requests_within_a_time(results: Results) -> None:
    measured = next(m for m in results.measurements if m.rate_rps)
    done = measured.latencies()
    figure = measured.plot(Slo(ttft_p99_s=0.25))
    ttft, tpot, e2e, limit = figure.data
    assert [trace.name for trace in figure.data] == ["TTFT", "TPOT", "E2E latency", "SLO TTFT p99"]
    for trace, name in ((ttft, "ttft_s"), (tpot, "tpot_s"), (e2e, "e2e_s")):
        assert np.allclose(trace.x, 1e3 * np.sort(done[name].dropna()))
        assert trace.y[-1] == 1
    assert (limit.x[0], limit.y[0]) == (250.0, 0.99)
    assert len(measured.plot().data) == 3


def test_results_draw_themselves(results: Results) -> None:
    tuning, model = results.tuning, results.latency_models[0]
    names = [trace.name for trace in tuning.plot_front().data]
    assert {"trial", "Pareto front", "winner"} <= set(names)
    assert "winner" in [trace.name for trace in tuning.plot_cost().data]
    day = tuning.winner_result.plot_day()
    assert list(day.data[-1].y) == list(thinned(tuning.winner_result.timeline)["replicas_ready"])
    assert "measured, holds" in [trace.name for trace in results.verification.plot().data]
    line = model.plot().data[0]
    assert np.allclose(line.y, 1e3 * model.step_time_s(0, line.x, 128 * line.x))
    assert max(line.x) <= model.fitted_range.decode_seqs


def test_a_latency_model_is_a_card_of_its_terms(results: Results) -> None:
    model = results.latency_models[0].model_copy(update={"doubts": ("late",)})
    shown = model._repr_html_()
    assert "Latency model of parent, fitted to 1,800 steps" in shown
    assert "cannot be trusted: late" in shown
    assert "3.4% (3.0% to 4.0%)" in shown


def test_a_prediction_shows_its_tolerances(results: Results) -> None:
    table = results.tuning.prediction.table().set_index("metric")
    prediction = results.tuning.prediction
    assert table.loc["ttft_p99_s", "tolerated"] == prediction.tolerance_p99
    assert table.loc["tpot_p50_s", "tolerated"] == prediction.tolerance_p50
    assert "ttft_p99_s" in prediction._repr_html_()


def test_capacity_and_comparison_draw_their_intervals() -> None:
    runs = pd.DataFrame(
        {
            "rate_rps": [4.0, 8.0, 4.0],
            "seed": [0, 1, 2],
            "requests": 100,
            "attainment": [1.0, 0.9, 0.99],
            "low": [0.95, 0.85, 0.98],
            "high": [1.0, 0.95, 1.0],
            "verdict": ["undecided", "breaks", "keeps"],
        }
    )
    found = Capacity(4.0, 4.0, 8.0, 0.99, 0.95, runs)
    merged, single = found.plot().data
    assert list(merged.x) == [4.0, 8.0]
    assert np.allclose(merged.y, [0.99, 0.9])
    assert len(single.x) == 3
    rows = pd.DataFrame(
        {"metric": ["ttft_p50_s"], "ratio": [0.8], "low": [0.7], "high": [0.9], "verdict": ["less"]}
    )
    (ratio,) = Comparison("a", "b", rows, narrow_enough=True).plot().data
    assert ratio.x[0] - ratio.error_x.arrayminus[0] == pytest.approx(0.7)
    assert ratio.x[0] + ratio.error_x.array[0] == pytest.approx(0.9)


def test_a_payoff_and_its_study_say_what_they_are() -> None:
    folder = Path(__file__).parents[3] / "experiments" / "results" / "h100" / "payoff-8b"
    payoff = Payoff.read(folder)
    shown = payoff._repr_html_()
    assert "int8-gptq" in shown
    assert "<table" in shown
    assert len(payoff.plot()) == 2


def test_a_study_names_what_failed(results: Results) -> None:
    from workbench.measure.points import Failure
    from workbench.measure.study import Study, StudyResult

    study = Study(name="one", question="Is <b> bold?", concurrency=(1,))
    measured = [m for m in results.measurements if m.batch][:3]
    doubted = replace(measured[0], invalid=("late",))
    failure = Failure(
        name="batch-9",
        variant=measured[0].variant,
        engine=EngineArgs(max_model_len=512),
        workload=measured[0].workload,
        cause="out of memory",
    )
    shown = StudyResult(study, [doubted, *measured[1:]], [failure])._repr_html_()
    assert "Is &lt;b&gt; bold? 3 points, 1 of them not to be trusted" in shown
    assert "failed: batch-9, out of memory" in shown


@pytest.mark.slow
def test_a_failed_call_in_a_notebook_shows_the_remedy_and_no_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from pathlib import Path\nfrom serving.plan import Plan\nPlan.read(Path('nowhere.json'))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    client = NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(CellExecutionError):
        client.execute()
    (output,) = notebook.cells[0].outputs
    assert output["traceback"] == [
        "InputError: cannot read nowhere.json (No such file or directory).",
        "Check the path.",
    ]
