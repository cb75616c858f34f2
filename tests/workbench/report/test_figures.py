"""What the figures show is what was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from serving.plan import Slo
from simulations import figures as day_figures
from simulations import theme
from simulations.idle import IdleStudy
from workbench.report import figures, fleet_figures, traffic_figures
from workbench.report.words import ms, percent, seconds, share_change

if TYPE_CHECKING:
    from conftest import Results


def test_speedups_are_ratios_at_the_same_batch(results: Results) -> None:
    table = figures.speedups(results.measurements, "parent")
    parent = table[table["variant"] == "parent"]
    assert np.allclose(parent["speedup"], 1)

    def tokens_per_s(name: str) -> float:
        runs = [m for m in results.measurements if m.variant.name == name and m.batch == 8]
        return float(np.mean([m.summary()["output_tokens_per_s"] for m in runs]))

    found = table[(table["variant"] == "int8") & (table["batch"] == 8)]["speedup"].item()
    assert found == pytest.approx(tokens_per_s("int8") / tokens_per_s("parent"))


def test_a_batch_that_the_parent_lacks_has_no_speedup(results: Results) -> None:
    some = [m for m in results.measurements if not (m.variant.name == "parent" and m.batch == 8)]
    assert 8 not in set(figures.speedups(some, "parent")["batch"])


def test_payoff_map_has_a_track_per_variant(results: Results) -> None:
    figure = figures.payoff_map(results.variants, results.measurements, Slo().max_quality_loss)
    assert [trace.name for trace in figure.data] == ["parent", "int8", "w4a16", "pruned"]
    int8 = figure.data[1]
    assert len(int8.x) == 6
    assert np.allclose(int8.y, 100 * 0.615 / 0.62)
    assert figure.layout.annotations[0].y == pytest.approx(98)


def test_predicted_steps_use_the_model(results: Results) -> None:
    model = results.latency_models[0]
    exact = figures.busy_steps(results.measurements, model)
    slower = model.model_copy(update={"base_s": model.base_s + 1})
    shifted = figures.busy_steps(results.measurements, slower)
    assert np.allclose(shifted["predicted_s"], exact["predicted_s"] + 1)
    assert set(exact["kind"]) == {"decode only", "with prefill"}


def test_prefilled_tokens_are_not_read_by_decoding_sequences(results: Results) -> None:
    """The log's kv_tokens hold the step's own prefill; the model's do not."""
    model = results.latency_models[0].model_copy(update={"per_kv_token_s": 1.0, "floor_s": 0.0})
    step = {"t_s": 1.0, "step_s": 1.0, "gap_s": 0.0, "prefill_requests": 1, "prefill_tokens": 64}
    step |= {"decode_seqs": 0, "kv_tokens": 64, "running": 1, "waiting": 0}
    alone = replace(results.measurements[0], steps=pd.DataFrame([step] * 30))
    predicted = figures.busy_steps([alone], model)["predicted_s"]
    assert np.allclose(predicted, model.base_s + model.per_seq_s + 64 * model.per_token_s)


def test_steps_of_a_server_take_longer_by_what_lies_inside_them(results: Results) -> None:
    model = results.latency_models[0]
    slower = model.model_copy(update={"step_overhead_s": model.step_overhead_s + 0.25})
    steps = figures.busy_steps(results.measurements, slower)
    exact = figures.busy_steps(results.measurements, model)
    added = steps["predicted_s"] - exact["predicted_s"]
    assert steps["server"].any()
    assert np.allclose(added, 0.25 * steps["server"])
    # The made-up log has the whole overhead between the steps.
    assert np.allclose(exact["predicted_s"] / exact["step_s"], 1, atol=0.3)


def test_candidates_hold_the_winner_once_and_sorted(results: Results) -> None:
    table = fleet_figures.candidates(results.tuning)
    assert list(table["name"]) == [
        *("clairvoyant bound", "winner", "queue-rule", "article-hpa", "static-peak")
    ]
    assert list(table["is_winner"]) == [False, True, False, False, False]
    with_winner = pd.concat([results.tuning.baselines, table[table["is_winner"]]])
    again = fleet_figures.candidates(replace(results.tuning, baselines=with_winner))
    assert list(again["name"]) == list(table["name"])


def test_candidates_that_break_the_slo_are_hatched(results: Results) -> None:
    figure = fleet_figures.cost_of_candidates(results.tuning)
    hatched = [trace for trace in figure.data if trace.marker.pattern.shape]
    assert [list(trace.y) for trace in hatched] == [["article-hpa"]]


def test_the_front_is_what_no_trial_beats(results: Results) -> None:
    front, trials = results.tuning.front(), results.tuning.trials
    assert 1 < len(front) < len(trials)
    assert front["gpu_hours"].is_monotonic_increasing
    assert front["slo_attainment"].is_monotonic_increasing
    for row in trials.to_dict("records"):
        cheaper = front[front["gpu_hours"] <= row["gpu_hours"]]
        assert cheaper["slo_attainment"].max() >= row["slo_attainment"]
    figure = fleet_figures.cost_against_attainment(results.tuning)
    named = {trace.name: trace for trace in figure.data}
    assert list(named["Pareto front"].x) == front["gpu_hours"].tolist()
    assert {"trial", "winner", "static-peak", "article-hpa"} <= set(named)


def test_prediction_check_marks_what_does_not_hold(results: Results) -> None:
    assert len(fleet_figures.prediction_check(results.verification).data) == 3
    rows = results.verification.rows.copy()
    rows.loc[1, ["measured", "holds"]] = [2 * rows.loc[1, "predicted"], False]
    figure = fleet_figures.prediction_check(replace(results.verification, rows=rows))
    broken = figure.data[-1]
    assert (broken.name, list(broken.y), list(broken.x)) == (
        "measured, does not hold",
        ["TTFT p99"],
        [pytest.approx(100)],
    )


def test_wide_latencies_go_on_a_log_axis_with_the_limit_in_place(results: Results) -> None:
    figure = figures.latency_by_rate(results.variants, results.measurements, "ttft", Slo())
    assert figure.layout.yaxis.type is None
    slow = [
        replace(m, requests=m.requests.assign(first_token_s=m.requests["sent_s"] + 3.0))
        if m.mode == "server" and m.rate_rps == 10
        else m
        for m in results.measurements
    ]
    figure = figures.latency_by_rate(results.variants, slow, "ttft", Slo(ttft_p99_s=0.5))
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.shapes[0].y0 == pytest.approx(500)
    assert figure.layout.annotations[0].y == pytest.approx(np.log10(500))


def test_looks_are_stable_and_distinct() -> None:
    looks = theme.looks(["a", "parent", "b", "c"], "parent")
    assert looks["parent"].colour == theme.GREY
    assert len(set(looks.values())) == 4
    assert theme.looks(["a", "b"], "parent")["a"] == looks["a"]


def test_numbers_in_words() -> None:
    assert (seconds(0.0421), seconds(1.26), seconds(float("nan"))) == ("42.1 ms", "1.26 s", "–")
    assert (ms(3.189), ms(2500)) == ("3.19 ms", "2.5 s")
    assert [percent(s) for s in (0.0731, 1, 0.992, 0.99991, 0.5)] == [
        *("7.3 %", "100 %", "99.2 %", "99.99 %", "50 %")
    ]
    assert (share_change(88, 100), share_change(125, 100)) == ("12 % fewer", "25 % more")


def test_idle_shares_are_those_of_the_study() -> None:
    study = IdleStudy(
        name="night",
        question="?",
        claim="above 60 %",
        profiles=("servegen-m-mid", "azure-code-week-2024"),
    )
    night, day = traffic_figures.idle_shares(study).data
    assert list(night.x) == ["azure-code-week-2024", "servegen-m-mid"]
    assert list(night.y) == pytest.approx([0.86, 0.36], abs=0.01)
    assert all(a > b for a, b in zip(night.y, day.y, strict=True))


def test_sensitivity_has_a_bar_per_neighbour_and_says_which_breaks_the_slo(
    results: Results,
) -> None:
    figure = fleet_figures.sensitivity(results.tuning)
    down, up, best = figure.data
    assert list(down.x) == pytest.approx([-3])
    assert list(down.text) == ["✗"]
    assert list(down.marker.pattern.shape) == ["/"]
    assert list(up.x) == pytest.approx([5, 20])
    assert not any(up.text)
    # The most sensitive is drawn on top, which is the end of plotly's axis.
    assert list(figure.layout.yaxis.categoryarray) == ["min_replicas", "warm_spares", "variant"]
    assert figure.layout.yaxis.ticktext == ("min replicas", "warm spares", "variant")
    assert list(best.x) == pytest.approx([60])
    assert best.customdata.tolist() == [["parent instead of int8"]]


def test_fleets_stand_beside_what_the_rate_needs(results: Results) -> None:
    day = results.tuning.winner_result
    other = replace(day, plan_name="twice", timeline=day.timeline.assign(replicas_ready=16.0))
    offered, needed, own, twice = day_figures.fleets_over_day([day, other], sustained_rps=6).data
    assert (own.name, twice.name) == (day.plan_name, "twice")
    assert own.line.color != twice.line.color
    assert set(twice.y) == {16.0}
    assert list(needed.y) == list(np.ceil(np.array(offered.y) / 6))
    assert len(day_figures.fleets_over_day([day, other]).data) == 3
