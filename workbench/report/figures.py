"""Figures of what was measured and fitted, for the report and for notebooks alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from serving.errors import MeasurementError
from serving.plan import Slo, Variant
from simulations import theme
from simulations.latency import LatencyModel
from workbench.fit.steps import ATTENTION, DECODE, KV, PREFILL, SEQS, steps_of
from workbench.measure.measurement import frame

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.measure import Measurement

LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E latency"}
_MOST_POINTS = 3_000


def served(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """`frame` of the open-loop runs on a real server, the slowest rate first."""
    table = frame([m for m in measurements if m.mode == "server" and m.rate_rps is not None])
    return table.sort_values("rate_rps", kind="stable") if len(table) else table


def by_batch(measurements: Sequence[Measurement]) -> pd.DataFrame:
    """Offline throughput and per-token latency, the mean over repeats with their range.

    Returns: columns variant, batch, tokens_per_s, tokens_per_s_low, tokens_per_s_high, tpot_ms.
    """
    closed = [m for m in measurements if m.mode == "offline" and m.batch is not None]
    if not closed:
        return pd.DataFrame(columns=["variant", "batch", "tokens_per_s", "tpot_ms"])
    offline = frame(closed)
    grouped = offline.groupby(["variant", "batch"], sort=False)
    return (
        grouped.agg(
            tokens_per_s=("output_tokens_per_s", "mean"),
            tokens_per_s_low=("output_tokens_per_s", "min"),
            tokens_per_s_high=("output_tokens_per_s", "max"),
            tpot_ms=("tpot_p50_s", lambda column: 1e3 * column.mean()),
        )
        .reset_index()
        .sort_values("batch", kind="stable")
    )


def speedups(measurements: Sequence[Measurement], parent: str) -> pd.DataFrame:
    """Tokens a second over the parent's at the same batch: columns variant, batch, speedup."""
    table = by_batch(measurements)
    base = table[table["variant"] == parent].set_index("batch")["tokens_per_s"]
    return table.assign(speedup=table["tokens_per_s"] / table["batch"].map(base)).dropna(
        subset=["speedup"]
    )


def parent_of(variants: Sequence[Variant]) -> str:
    """The variant that the others were made from: the first without a parent."""
    return next((v.name for v in variants if v.parent is None), variants[0].name)


def payoff_map(
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    max_quality_loss: float | None = None,
) -> go.Figure:
    """Quality kept against speed-up: a track per variant, from small batches to large."""
    parent = parent_of(variants)
    table = speedups(measurements, parent)
    looks = theme.looks([v.name for v in variants], parent)
    figure = theme.canvas(
        "Where each variant pays",
        theme.axis("speed-up over the parent (×)"),
        theme.axis("accuracy kept (% of parent)"),
    )
    for variant in variants:
        track = table[table["variant"] == variant.name]
        if variant.quality is None or track.empty:
            continue
        recovery = variant.quality.recovery
        kept = 100 * recovery.value
        middle = len(track) // 2
        ends = {track.index[0], track.index[-1]}
        figure.add_scatter(
            x=track["speedup"],
            y=np.full(len(track), kept),
            name=variant.name,
            mode="lines+markers+text",
            text=[
                f"{batch:g}" if at in ends and variant.name != parent else ""
                for at, batch in track["batch"].items()
            ],
            textposition="top center",
            textfont={"size": 11},
            line={"color": looks[variant.name].colour, "width": 2},
            marker={
                "symbol": looks[variant.name].symbol,
                "color": looks[variant.name].colour,
                "size": 7 + 2 * np.log2(track["batch"].to_numpy()),
                "line": {"width": 0},
            },
            error_y={
                "array": [
                    100 * recovery.high - kept if i == middle else None for i in range(len(track))
                ],
                "arrayminus": [
                    kept - 100 * recovery.low if i == middle else None for i in range(len(track))
                ],
                "symmetric": False,
                "thickness": 1,
            },
            customdata=track["batch"],
            hovertemplate="batch %{customdata}: %{x:.2f}×, %{y:.1f} % kept",
        )
    figure.add_vline(x=1, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    if max_quality_loss is not None:
        theme.limit_line(
            figure, 100 * (1 - max_quality_loss), "allowed loss of quality", right=True
        )
    return figure


def speedup_by_batch(variants: Sequence[Variant], measurements: Sequence[Measurement]) -> go.Figure:
    """Speed-up over the parent by batch size: where compression stops paying."""
    parent = parent_of(variants)
    table = speedups(measurements, parent)
    table = table[table["variant"] != parent]
    figure = _lines(
        "Speed-up by batch size",
        table,
        theme.batch_axis(table["batch"]),
        ("speedup", "speed-up over the parent (×)"),
        theme.looks([v.name for v in variants], parent),
    )
    figure.add_hline(y=1, line={"color": theme.GREY, "width": 1, "dash": "dot"})
    return figure


def throughput_by_batch(
    variants: Sequence[Variant], measurements: Sequence[Measurement]
) -> go.Figure:
    """Generated tokens a second against batch size, bars from the slowest to the fastest repeat."""
    table = by_batch(measurements)
    return _lines(
        "Throughput",
        table,
        theme.batch_axis(table["batch"]),
        ("tokens_per_s", "generated tokens per second"),
        theme.looks([v.name for v in variants], parent_of(variants)),
    )


def token_latency_by_batch(
    variants: Sequence[Variant], measurements: Sequence[Measurement]
) -> go.Figure:
    """Median time per output token against batch size."""
    table = by_batch(measurements)
    return _lines(
        "Latency per token",
        table,
        theme.batch_axis(table["batch"]),
        ("tpot_ms", "TPOT p50 (ms)"),
        theme.looks([v.name for v in variants], parent_of(variants)),
    )


def latency_by_rate(
    variants: Sequence[Variant],
    measurements: Sequence[Measurement],
    metric: str,
    slo: Slo | None = None,
) -> go.Figure:
    """p50 (solid) and p99 (dashed) of 'ttft', 'tpot' or 'e2e' against the offered rate."""
    table = served(measurements)
    looks = theme.looks([v.name for v in variants], parent_of(variants))
    values_ms = 1e3 * table[[f"{metric}_p50_s", f"{metric}_p99_s"]].to_numpy()
    wide = values_ms.size > 0 and np.nanmax(values_ms) > 20 * np.nanmin(values_ms)
    label = f"{LATENCIES[metric]} (ms)"
    y = theme.log_axis(label, values_ms.flat) if wide else theme.axis(label, rangemode="tozero")
    figure = theme.canvas(
        LATENCIES[metric],
        theme.axis("offered rate (requests per second)"),
        y,
    )
    for name, rows in table.groupby("variant", sort=False):
        for percentile, dash in (("p50", "solid"), ("p99", "dash")):
            figure.add_scatter(
                x=rows["rate_rps"],
                y=1e3 * rows[f"{metric}_{percentile}_s"],
                name=f"{name} {percentile}",
                mode="lines+markers",
                line={"color": looks[str(name)].colour, "dash": dash, "width": 2},
                marker={"symbol": looks[str(name)].symbol, "size": 8},
                hovertemplate="%{x:.3g} requests/s: %{y:.1f} ms",
            )
    limit_s = slo.limits().get(f"{metric}_p99_s") if slo else None
    if limit_s is not None:
        # A limit far above everything measured would flatten what there is to see.
        shown = wide or (values_ms.size > 0 and 1e3 * limit_s < 3 * np.nanmax(values_ms))
        if shown:
            theme.limit_line(figure, 1e3 * limit_s, "SLO p99")
    return figure


def busy_steps(measurements: Sequence[Measurement], model: LatencyModel) -> pd.DataFrame:
    """Steps of the model's variant that held work, with the time that the model gives each.

    Steps that can only be timed together (see `fit.steps.Steps`) are one row, their mean.

    Returns: columns step_s, predicted_s, decode_seqs, server (a server ran it), kind ('decode only'
             or 'with prefill'); no rows where too few steps were logged.
    """
    own = [m for m in measurements if m.variant.name == model.variant]
    columns = ["step_s", "predicted_s", "decode_seqs", "server", "kind"]
    try:
        steps = steps_of(own, 0.0, np.random.default_rng(0))
    except MeasurementError:
        return pd.DataFrame(columns=columns)
    prefill, decode, read, attention, seqs = (
        steps.terms[:, column] for column in (PREFILL, DECODE, KV, ATTENTION, SEQS)
    )
    gaps = [m.steps["gap_s"] for m in own if m.mode == "server"]
    # Of the overhead between two steps of a server, the log counts the rest into the step itself.
    outside_s = pd.concat(gaps).median() if gaps else 0.0
    inside_s = model.step_overhead_s - (0.0 if math.isnan(outside_s) else max(0.0, outside_s))
    predicted = model.step_time_s(prefill, decode, read, attention, seqs - decode)
    predicted += inside_s * steps.server
    first = steps.starts()
    count = steps.summed(np.ones(len(steps)))
    kind = np.where(steps.summed(prefill) > 0, "with prefill", "decode only")
    values = (
        steps.summed(steps.step_s) / count,
        steps.summed(predicted) / count,
        decode[first],
        steps.server[first],
        kind,
    )
    table = pd.DataFrame(dict(zip(columns, values, strict=True)))
    return table[steps.summed(prefill + decode) > 0]


def predicted_steps(measurements: Sequence[Measurement], model: LatencyModel) -> go.Figure:
    """Predicted against measured step time; the line is a perfect prediction, the band 20 %."""
    steps = busy_steps(measurements, model)
    shown = steps.sample(min(len(steps), _MOST_POINTS), random_state=0)
    ends = np.array([shown["step_s"].min(), shown["step_s"].max()]) * 1e3 * np.array([0.8, 1.25])
    figure = theme.canvas(
        f"{model.variant}: engine steps",
        theme.log_axis("measured step time (ms)", ends),
        theme.log_axis("predicted step time (ms)", ends),
    )
    for share, fill in ((0.8, None), (1.2, "tonexty")):
        figure.add_scatter(
            x=ends,
            y=ends * share,
            mode="lines",
            line={"width": 0},
            fill=fill,
            fillcolor="rgba(128,134,145,0.18)",
            showlegend=False,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        name="perfect",
        line={"color": theme.GREY, "width": 1},
        hoverinfo="skip",
    )
    for kind, colour in (("decode only", theme.BLUE), ("with prefill", theme.ORANGE)):
        part = shown[shown["kind"] == kind]
        figure.add_scatter(
            x=1e3 * part["step_s"],
            y=1e3 * part["predicted_s"],
            mode="markers",
            name=kind,
            marker={"color": colour, "size": 5, "opacity": 0.45},
            hovertemplate="measured %{x:.2f} ms, predicted %{y:.2f} ms",
        )
    return figure


def decode_steps(measurements: Sequence[Measurement], model: LatencyModel) -> go.Figure:
    """Decode-only step time by batch: measured median with p10 to p90, and the model's.

    Of the offline engine, whose batches are known best; of the server where there is no other.
    """
    steps = busy_steps(measurements, model)
    steps = steps[steps["kind"] == "decode only"]
    steps = steps[steps["server"] == steps["server"].min()]
    grouped = steps.groupby("decode_seqs")
    measured = grouped["step_s"].quantile(np.array([0.1, 0.5, 0.9])).unstack() * 1e3
    predicted = grouped["predicted_s"].median() * 1e3
    figure = theme.canvas(
        f"{model.variant}: decode steps by batch",
        theme.axis("decoding sequences in the step"),
        theme.axis("step time (ms)", rangemode="tozero"),
    )
    if steps.empty:
        return figure
    figure.add_scatter(
        x=measured.index,
        y=measured[0.5],
        mode="markers",
        name="measured, p10 to p90",
        marker={"color": theme.BLUE, "size": 8},
        error_y=theme.error_bars(measured[0.5], measured[0.1], measured[0.9], thickness=1),
        hovertemplate="%{x} sequences: %{y:.2f} ms",
    )
    figure.add_scatter(
        x=predicted.index,
        y=predicted,
        mode="lines",
        name="model",
        line={"color": theme.ORANGE, "width": 2.5},
        hovertemplate="%{x} sequences: %{y:.2f} ms",
    )
    return figure


def _lines(
    title: str,
    table: pd.DataFrame,
    x: dict[str, object],
    value: tuple[str, str],
    looks: dict[str, theme.Look],
) -> go.Figure:
    """One line per variant over batch size; error bars where the table has `<value>_low`."""
    column, label = value
    figure = theme.canvas(title, x, theme.axis(label, rangemode="tozero"))
    for name, rows in table.groupby("variant", sort=False):
        look = looks[str(name)]
        bars = None
        if f"{column}_low" in table:
            low, high = rows[f"{column}_low"], rows[f"{column}_high"]
            bars = theme.error_bars(rows[column], low, high, thickness=1)
        figure.add_scatter(
            x=rows["batch"],
            y=rows[column],
            name=str(name),
            mode="lines+markers",
            line={"color": look.colour, "width": 2},
            marker={"symbol": look.symbol, "size": 8},
            error_y=bars,
            hovertemplate="batch %{x}: %{y:,.3g}",
        )
    return figure
