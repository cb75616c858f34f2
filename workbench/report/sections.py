"""The page's sections: figures, each with what it shows in one sentence and how it was obtained.

Every sentence is computed from the data, so that it is never more favourable than the figure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from simulations.figures import replicas_over_day
from workbench.report import figures, fleet_figures
from workbench.report.data import ReportData
from workbench.report.words import kept_of_parent, ms, percent, seconds, share_change

if TYPE_CHECKING:
    import plotly.graph_objects as go


_HELD_OUT = {
    "step_median": "a step (median)",
    "block_median": "some steps in a row (median)",
    "total_time": "total time",
    "server_step_median": "a server's step (median)",
}


@dataclass(frozen=True)
class Section:
    """One part of the page. `table` has the columns as they are shown."""

    anchor: str
    title: str
    conclusion: str
    how: str
    figures: tuple[go.Figure, ...]
    table: pd.DataFrame | None = None


def sections(data: ReportData) -> Iterator[Section]:
    """The sections for which there are results."""
    offline = figures.by_batch(data.trusted)
    if len(offline):
        if len(data.variants) > 1:
            yield _payoff(data)
        yield _batches(data, offline)
    if len(figures.served(data.trusted)):
        yield _load(data)
    if data.latency_models:
        yield _fit(data)
    if data.tuning is not None:
        yield _day(data)
        yield _cost(data)
    if data.verification is not None:
        yield _verify(data)


def _payoff(data: ReportData) -> Section:
    parent = figures.parent_of(data.variants)
    table = figures.speedups(data.trusted, parent)
    gains = table[table["variant"] != parent]
    small, large = gains["batch"].min(), gains["batch"].max()
    said = []
    for batch in dict.fromkeys((small, large)):
        best = gains[gains["batch"] == batch].nlargest(1, "speedup").iloc[0]
        if best["speedup"] > 1:
            said.append(f"at batch {batch:g} {best['variant']} is fastest ({best['speedup']:.2f}×)")
        else:
            said.append(
                f"at batch {batch:g} none is faster than {parent}"
                f" (best: {best['variant']}, {best['speedup']:.2f}×)"
            )
    judged = [v for v in data.variants if v.quality and v.name != parent]
    limit = data.limits.max_quality_loss if data.limits else None
    if judged:
        allowed = limit or 0.0
        kept = ", ".join(f"{v.name} {kept_of_parent(v, allowed)}" for v in judged)
        said.append(f"of the parent's task accuracy they keep: {kept}")
    return Section(
        "payoff",
        "Where compression pays",
        _sentence("; ".join(said)),
        "Speed: offline vLLM, the same prompts and output lengths for every variant, repeats"
        " interleaved over the batch sizes. Quality: tasks that no variant was fitted to; bars are"
        " 95 % intervals of what is kept, over the same questions. Small numbers at the points are"
        " batch sizes.",
        (
            figures.payoff_map(data.variants, data.trusted, limit),
            figures.speedup_by_batch(data.variants, data.trusted),
        ),
    )


def _batches(data: ReportData, table: pd.DataFrame) -> Section:
    parent = figures.parent_of(data.variants)
    own = table[table["variant"] == parent]
    rows = own if len(own) else table
    first, last = rows.iloc[0], rows.iloc[-1]
    conclusion = (
        f"From batch {first['batch']:g} to {last['batch']:g}, {first['variant']} goes from"
        f" {first['tokens_per_s']:,.0f} to {last['tokens_per_s']:,.0f} tokens a second"
        f" ({last['tokens_per_s'] / first['tokens_per_s']:.1f}×), while a token takes"
        f" {last['tpot_ms'] / first['tpot_ms']:.1f}× as long ({ms(first['tpot_ms'])} to"
        f" {ms(last['tpot_ms'])})."
    )
    return Section(
        "batches",
        "Batch size: throughput against latency per token",
        conclusion,
        "Offline vLLM, closed loop: as many requests in flight as the batch size, output lengths"
        " pinned. Bars reach from the slowest to the fastest repeat.",
        (
            figures.throughput_by_batch(data.variants, data.trusted),
            figures.token_latency_by_batch(data.variants, data.trusted),
        ),
    )


def _load(data: ReportData) -> Section:
    table = figures.served(data.trusted)
    said = []
    for name, rows in table.groupby("variant", sort=False):
        low, high = rows.iloc[0], rows.iloc[-1]
        said.append(
            f"{name}: p99 TTFT goes from {seconds(low['ttft_p99_s'])} at {low['rate_rps']:.3g} to"
            f" {seconds(high['ttft_p99_s'])} at {high['rate_rps']:.3g} requests a second"
        )
    return Section(
        "load",
        "A real server under load",
        _sentence("; ".join(said)),
        "Open loop: requests leave when scheduled, whether or not earlier ones came back."
        " TTFT counts to the first chunk with content; TPOT is (E2E - TTFT) / (output tokens - 1)."
        " Requests of the warm-up are sent and not counted.",
        tuple(
            figures.latency_by_rate(data.variants, data.trusted, metric, data.limits)
            for metric in figures.LATENCIES
        ),
    )


def _fit(data: ReportData) -> Section:
    said, rows, drawn = [], [], []
    for model in data.latency_models:
        errors = {
            _HELD_OUT.get(
                name, name
            ): f"{100 * e.value:.1f} % ({100 * e.low:.1f} to {100 * e.high:.1f})"
            for name, e in model.heldout_error.items()
        }
        rows.append(
            {
                "variant": model.variant,
                "steps fitted": f"{model.n_steps:,}",
                **errors,
                "cold start": f"{seconds(model.cold_start.total_s)} ({model.cold_start.source})",
            }
        )
        steps = figures.busy_steps(data.trusted, model)
        if len(steps):
            error = np.abs(steps["predicted_s"] / steps["step_s"] - 1)
            said.append(f"{model.variant} {percent(float(error.median()))}")
            drawn.append(figures.predicted_steps(data.trusted, model))
            drawn.append(figures.decode_steps(data.trusted, model))
    conclusion = (
        f"Median error of a single step's time over everything measured: {', '.join(said)}."
        if said
        else "No engine steps were recorded for the fitted variants."
    )
    return Section(
        "fit",
        "The latency model against the engine's own steps",
        conclusion,
        "A step takes max(floor, base + prefill + decode + KV + attention), all coefficients"
        " non-negative, fitted to vLLM's step log. The table holds the relative errors on"
        " steps that were not fitted, with 95 % intervals.",
        tuple(drawn),
        pd.DataFrame(rows),
    )


def _day(data: ReportData) -> Section:
    assert data.tuning is not None
    result = data.tuning.winner_result
    table = result.timeline
    ready = table["replicas_ready"]
    attainment = result.metrics.get("slo_attainment")
    met = f" {percent(attainment.value)} of the requests meet the SLO." if attainment else ""
    return Section(
        "day",
        "A day of the winning fleet",
        f"The fleet follows the day with {ready.min():.0f} to {ready.max():.0f} ready replicas"
        f" while the offered rate runs from {table['offered_rps'].min():.2g} to"
        f" {table['offered_rps'].max():.3g} requests a second.{met}",
        "Simulated with the fitted latency model and the HorizontalPodAutoscaler's own algorithm,"
        " with scrape and adapter delays and measured start-up time; the first of"
        f" {len(result.per_seed)} seeds is drawn.",
        (replicas_over_day(result),),
    )


def _cost(data: ReportData) -> Section:
    assert data.tuning is not None
    tuning = data.tuning
    table = fleet_figures.candidates(tuning)
    winner = table[table["is_winner"]].iloc[0]
    bound = table[table["name"].str.contains("clairvoyant", case=False)]
    kept = int(tuning.trials["keeps_slo"].eq(True).sum())
    text = f"{kept} of {len(tuning.trials)} trials keep the SLO."
    if len(bound):
        over = share_change(winner["gpu_hours"], bound.iloc[0]["gpu_hours"])
        text += f" The winner needs {over} GPU hours than the clairvoyant lower bound."
    text += f" {tuning.generalisation_in_words()}" if tuning.seen else ""
    text += f" {said}" if (said := tuning.at_equal_attainment_in_words()) else ""
    text += "".join(f" Doubt: {doubt}." for doubt in tuning.own_doubts)
    for name, reason in tuning.rejected.items():
        text += f" Not searched: {name}, {reason.rstrip('.')}."
    shown = table.assign(
        name=table["name"].where(
            ~table["is_winner"] | (table["name"] == "winner"), table["name"] + " (winner)"
        ),
        attainment=[percent(v) for v in table["slo_attainment"]],
        ttft=[seconds(v) for v in table["ttft_p99_s"]],
        keeps=np.where(table["keeps_slo"].eq(True), "yes", "no"),
        hours=[f"{v:,.1f}" for v in table["gpu_hours"]],
        usd=[f"{v:,.0f}" for v in table["cost_usd"]],
    )[["name", "hours", "usd", "ttft", "attainment", "keeps"]]
    shown.columns = pd.Index(
        ["candidate", "GPU hours/day", "USD/day", "TTFT p99", "meet the SLO", "keeps the SLO"]
    )
    return Section(
        "cost",
        "What it costs, and what else was tried",
        text,
        "Every candidate sees the same traffic (common random numbers). The winner and the"
        " baselines are judged on traffic that the search has not seen. The clairvoyant bound knows"
        " the future: the fewest replicas that could have kept the SLO. Sensitivity is one step in each"
        " free parameter, to both sides, on unseen traffic.",
        (
            fleet_figures.cost_against_latency(tuning, tuning.winner.slo),
            fleet_figures.cost_against_attainment(tuning),
            fleet_figures.cost_of_candidates(tuning),
            *([fleet_figures.sensitivity(tuning)] if len(tuning.neighbours) else []),
        ),
        shown,
    )


def _verify(data: ReportData) -> Section:
    assert data.verification is not None
    rows = data.verification.rows
    kept = int(rows["holds"].astype(bool).sum())
    deviations = rows["measured"] / rows["predicted"] - 1
    worst = int(deviations.abs().to_numpy().argmax())
    metric = str(rows["metric"].iloc[worst])
    name = fleet_figures.METRIC_NAMES.get(metric, metric)
    columns = ["predicted", "low", "high", "measured"]
    shown = pd.DataFrame(
        {
            "metric": [fleet_figures.METRIC_NAMES.get(m, m) for m in rows["metric"]],
            **{
                column: [
                    seconds(v)
                    if str(m).endswith("_s") and not str(m).endswith("per_s")
                    else f"{v:,.1f}"
                    for m, v in zip(rows["metric"], rows[column], strict=True)
                ]
                for column in columns
            },
            "error": [f"{100 * v:+.1f} %" for v in deviations],
            "tolerated": [f"±{100 * v:.0f} %" for v in rows["tolerance"]],
            "holds": np.where(rows["holds"].astype(bool), "yes", "no"),
        }
    )
    return Section(
        "verify",
        "Was the prediction true?",
        f"{kept} of {len(rows)} metrics are within tolerance; the largest deviation is {name}"
        f" ({100 * deviations.iloc[worst]:+.0f} %).",
        "The exported bundle was started on real vLLM and got the load of the prediction. The"
        " prediction was made before, for one replica, by the same simulator that tuned the fleet.",
        (fleet_figures.prediction_check(data.verification),),
        shown,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""
