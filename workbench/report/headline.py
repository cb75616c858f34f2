"""The answer in one sentence, the numbers under it, and one row per variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from serving.hpa import Metric, milli
from serving.plan import Plan
from workbench.report import figures, fleet_figures
from workbench.report.data import ReportData
from workbench.report.words import kept_of_parent, seconds, share_change


@dataclass(frozen=True)
class Card:
    """A number with what it is. `tone` is 'good', 'bad' or '' and is also said in words."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


def headline(data: ReportData) -> str:
    """The winner, what it saves, and whether the prediction was true."""
    if data.tuning is None:
        return (
            f"{len(data.variants)} variants, {len(data.measurements)} measurements:"
            " nothing has been tuned yet."
        )
    table = fleet_figures.candidates(data.tuning)
    winner = table[table["is_winner"]].iloc[0]
    keeps = "keeps" if winner["keeps_slo"] else "does not keep"
    plan = data.tuning.winner
    text = (
        f"{plan.variant.name} with {fleet_in_words(plan)} {keeps} the SLO"
        f" for {winner['gpu_hours']:,.1f} GPU hours a day"
    )
    compared = [
        f"{share_change(winner['gpu_hours'], row['gpu_hours'])} than {name}"
        + ("" if row["keeps_slo"] else " (which breaks the SLO)")
        for name, row in _rivals(table)
    ]
    text += f": {' and '.join(compared)}." if compared else "."
    if data.verification is None:
        return text + " It has not been verified on a real server yet."
    holds = data.verification.rows["holds"].astype(bool)
    outcome = (
        f"held in all {len(holds)} metrics"
        if data.verification.holds and holds.all()
        else f"held in {int(holds.sum())} of {len(holds)} metrics only"
    )
    return f"{text} On a real server the prediction {outcome}."


def cards(data: ReportData) -> Iterator[Card]:
    """The numbers behind the headline."""
    if data.tuning is not None:
        result, slo = data.tuning.winner_result, data.tuning.winner.slo
        hours = result.metrics["gpu_hours"]
        yield Card(
            "GPU hours a day",
            f"{hours.value:,.1f}",
            f"{hours.low:,.1f} to {hours.high:,.1f} over seeds",
        )
        table = fleet_figures.candidates(data.tuning)
        for name, row in _rivals(table):
            short = name.removesuffix(" of the peak")
            broken = "" if row["keeps_slo"] else ", breaks the SLO"
            yield Card(
                f"vs {short}",
                share_change(hours.value, row["gpu_hours"]),
                f"it needs {row['gpu_hours']:,.1f}{broken}",
            )
        for name, limit_s in slo.limits().items():
            found = result.metrics[name]
            yield Card(
                fleet_figures.METRIC_NAMES[name],
                seconds(found.value),
                f"limit {seconds(limit_s)}: {'kept' if found.high <= limit_s else 'not kept'}",
                "good" if found.high <= limit_s else "bad",
            )
    if data.verification is not None:
        holds = data.verification.rows["holds"].astype(bool)
        yield Card(
            "prediction vs real server",
            f"{int(holds.sum())} of {len(holds)} hold",
            "verified" if data.verification.holds else "not verified",
            "good" if data.verification.holds else "bad",
        )


def summary_table(data: ReportData) -> pd.DataFrame:
    """One row per variant, as text."""
    parent = figures.parent_of(data.variants)
    speed = figures.speedups(data.trusted, parent)
    load = figures.served(data.trusted)
    allowed = data.limits.max_quality_loss if data.limits else 0.0
    rows = []
    for variant in data.variants:
        row = {
            "variant": variant.name,
            "method": variant.method,
            "size": f"{variant.size_mib:,.1f} MiB",
            "accuracy kept": kept_of_parent(variant, allowed),
        }
        own = speed[speed["variant"] == variant.name]
        for batch in dict.fromkeys((speed["batch"].min(), speed["batch"].max())):
            at = own.loc[own["batch"] == batch, "speedup"]
            if batch == batch:
                row[f"speed-up, batch {batch:g}"] = f"{at.iloc[0]:.2f}×" if len(at) else "–"
        if len(load):
            last = load[load["variant"] == variant.name].tail(1)
            row["TTFT p99, highest rate"] = (
                f"{seconds(last.iloc[0]['ttft_p99_s'])} at {last.iloc[0]['rate_rps']:.3g}/s"
                if len(last)
                else "–"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def fleet_in_words(plan: Plan) -> str:
    """'1 to 12 replicas scaled on vllm_num_requests_running at 14'."""
    if plan.hpa is None:
        return f"a static fleet of {plan.replicas}"
    rules = " and ".join(_metric_in_words(metric) for metric in plan.hpa.metrics)
    plural = "" if plan.warm_spares == 1 else "s"
    spares = f" and {plan.warm_spares} warm spare{plural}" if plan.warm_spares else ""
    least, most = plan.hpa.min_replicas, plan.hpa.max_replicas
    return f"{least} to {most} replicas scaled on {rules}{spares}"


def _metric_in_words(metric: Metric) -> str:
    source = metric.pods or metric.external or metric.object
    if source is None:
        assert metric.resource is not None
        name: str = metric.resource.name
        target = metric.resource.target
    else:
        name, target = source.metric.name, source.target
    level = target.average_value or target.value
    told = f"{milli(level) / 1000:g}" if level else f"{target.average_utilization} %"
    return f"{name} at {told}"


def _rivals(table: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """What the winner is held against, where it was simulated."""
    for word, name in (("static", "a static fleet of the peak"), ("article", "the article's HPA")):
        found = table[table["name"].str.contains(word, case=False) & ~table["is_winner"]]
        if len(found):
            yield name, found.iloc[0]
