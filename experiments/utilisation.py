"""At which load does a GPU read 70 % utilisation? What signals say, from a study's points.

    python -m experiments.utilisation [FOLDER] [--out utilisation.html]

FOLDER is what `workbench study experiments/utilisation.yaml` left; without it the results of an H100
that lie beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from simulations import theme
from workbench.measure.measurement import Measurement
from workbench.measure.study import StudyResult, read_study
from workbench.measure.telemetry import HOST
from workbench.progress import print_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

RESULTS = Path(__file__).parent / "results" / "h100" / "utilisation"
CLAIM = 0.7
"""The utilisation at which the article adds replicas."""
_BLOCK_S = 2.0


def signals(result: StudyResult) -> pd.DataFrame:
    """One row per point, slowest first, closed loops before open ones.

    Device and queue are means over the time in which the load was on; utilisation_low and _high are the
    95 % interval of its mean, by Student's t over blocks of 2 s. Latencies are of all counted requests,
    also of runs that the gate doubts (their doubts are in `doubt`).

    Returns: columns load, rate_rps (NaN: closed loop), served_rps (answers while the load was on),
             utilisation (0..1) with _low and _high, memory_utilisation, power_w, memory_gib, running,
             waiting (sequences), ttft_p50_s, ttft_p99_s, tpot_p50_s, tpot_p99_s, doubt.
    """
    rows = [_row(measured) for measured in result.measurements]
    table = pd.DataFrame(rows).sort_values(["rate_rps", "users"], na_position="first")
    return table.drop(columns="users").reset_index(drop=True)


def reached(table: pd.DataFrame, share: float = CLAIM) -> float:
    """The Poisson rate at which utilisation passes a share, by interpolation; NaN where it never does."""
    rates = table[table["rate_rps"].notna()].groupby("rate_rps")["utilisation"].mean()
    above = np.flatnonzero(rates.to_numpy() >= share)
    if not len(above) or above[0] == 0:
        return float("nan")
    pair = rates.iloc[above[0] - 1 : above[0] + 1]
    return float(np.interp(share, pair.to_numpy(), pair.index.to_numpy(dtype=float)))


def answer(table: pd.DataFrame) -> str:
    """What the points say, in two sentences."""
    if table["utilisation"].isna().all():
        return "No GPU was sampled: utilisation is not known."
    open_ = table[table["rate_rps"].notna()]
    most = float(open_["served_rps"].max())
    at = reached(table)
    passed = (
        f"Utilisation passes {CLAIM:.0%} at {at:.2g} requests a second, {at / most:.0%} of the"
        f" {most:.3g} that were served at most."
        if at == at
        else f"Utilisation does not pass {CLAIM:.0%} between the rates that were measured."
    )
    busy = open_[open_["utilisation"] >= 0.9]
    if len(busy) < 2:
        return passed
    first, last = busy.iloc[0], busy.iloc[-1]
    return (
        f"{passed} From {first['rate_rps']:g} to {last['rate_rps']:g} it goes from"
        f" {first['utilisation']:.0%} to {last['utilisation']:.0%}, while running sequences go from"
        f" {first['running']:.3g} to {last['running']:.3g}, waiting ones from {first['waiting']:.2g} to"
        f" {last['waiting']:.3g}, and p99 TTFT from {1e3 * first['ttft_p99_s']:.0f} to"
        f" {1e3 * last['ttft_p99_s']:.0f} ms."
    )


def figures(table: pd.DataFrame) -> list[go.Figure]:
    """Signals as shares of their largest value, and latency, both by offered rate."""
    open_ = table[table["rate_rps"].notna()]
    rates = theme.log_axis("offered rate (requests per second)", open_["rate_rps"])
    shares = theme.canvas("Signals by load", rates, theme.axis("%", range=[0, 105]))
    looks = theme.looks(["GPU utilisation", "power", "running sequences", "waiting sequences"])
    most = {"power": "power_w", "running sequences": "running", "waiting sequences": "waiting"}
    for name, look in looks.items():
        metric = most.get(name, "utilisation")
        largest = open_[metric].max() if name in most else 1.0
        spread = open_["utilisation_high"] - open_["utilisation"]
        label = f"{name} (100 % = {largest:.3g}{' W' if name == 'power' else ''})"
        shares.add_scatter(
            x=open_["rate_rps"],
            y=100 * open_[metric] / largest,
            name=label if name in most else name,
            mode="lines+markers",
            line={"color": look.colour, "width": 2},
            marker={"symbol": look.symbol, "size": 8},
            error_y=None if name in most else {"array": 100 * spread},
        )
    theme.limit_line(shares, 100 * CLAIM, f"the article: {CLAIM:.0%}")
    latencies = ["ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"]
    milliseconds = 1e3 * open_[latencies]
    axis = theme.log_axis("ms", milliseconds.to_numpy().ravel())
    latency = theme.canvas("Latency by load", rates, axis)
    looks = theme.looks(["TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99"])
    for (name, look), metric in zip(looks.items(), latencies, strict=True):
        latency.add_scatter(
            x=open_["rate_rps"],
            y=milliseconds[metric],
            name=name,
            mode="lines+markers",
            line={"color": look.colour, "width": 2},
            marker={"symbol": look.symbol, "size": 8},
        )
    return [shares, latency]


def _row(measured: Measurement) -> dict[str, object]:
    window_s = measured.load_window_s()
    begin_s, end_s = window_s
    telemetry = measured.telemetry
    gpu = telemetry[telemetry["t_s"].between(begin_s, end_s) & (telemetry["gpu"] != HOST)]
    answered = measured.requests["end_s"].between(begin_s, end_s).sum()
    done = measured.latencies()
    mean, low, high = _mean_over_blocks(gpu["t_s"].to_numpy(), gpu["gpu_utilisation"].to_numpy())
    return {
        "load": f"{measured.batch} user" if measured.batch else f"{measured.rate_rps:g}/s",
        "users": measured.batch or 0,
        "rate_rps": measured.rate_rps if measured.rate_rps else float("nan"),
        "served_rps": float(answered) / (end_s - begin_s),
        "utilisation": mean,
        "utilisation_low": low,
        "utilisation_high": high,
        "memory_utilisation": float(gpu["memory_utilisation"].mean()),
        "power_w": float(gpu["power_w"].mean()),
        "memory_gib": float(gpu["memory_used_bytes"].max()) / 2**30,
        "running": _mean_over_time(measured.steps, "running", window_s),
        "waiting": _mean_over_time(measured.steps, "waiting", window_s),
        **{
            f"{metric}_p{q}_s": float(done[f"{metric}_s"].quantile(q / 100))
            for metric in ("ttft", "tpot")
            for q in (50, 99)
        },
        "doubt": "; ".join(measured.invalid),
    }


def _mean_over_blocks(
    t_s: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """Mean and its 95 % interval; NaN where there are fewer than two blocks."""
    known = np.isfinite(values)
    t_s, values = t_s[known], values[known]
    if not len(values):
        return (float("nan"),) * 3
    blocks = pd.Series(values).groupby(((t_s - t_s[0]) // _BLOCK_S).astype(int)).mean().to_numpy()
    n, mean = len(blocks), float(values.mean())
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, n - 1) * blocks.std(ddof=1) / np.sqrt(n))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def _mean_over_time(steps: pd.DataFrame, column: str, window_s: tuple[float, float]) -> float:
    """Of what holds from the end of one step to the end of the next."""
    begin_s, end_s = window_s
    before = steps[steps["t_s"] <= begin_s][column].tail(1).sum()
    inside = steps[(steps["t_s"] > begin_s) & (steps["t_s"] < end_s)]
    edges = np.concatenate([[begin_s], inside["t_s"].to_numpy(), [end_s]])
    held = np.concatenate([[before], inside[column].to_numpy()])
    return float((np.diff(edges) * held).sum() / (end_s - begin_s))


def main() -> None:
    """Print the answer and its table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("utilisation.html"))
    asked = parser.parse_args()
    result = read_study(asked.folder)
    table = signals(result)
    print_table(table)
    print(answer(table))
    for environment in sorted({m.environment.describe() for m in result.measurements}):
        print(f"measured on {environment}")
    pages = [
        figure.to_html(full_html=False, include_plotlyjs=not i, config={"displayModeBar": False})
        for i, figure in enumerate(figures(table))
    ]
    asked.out.write_text("<!doctype html><meta charset=utf-8>" + "".join(pages))
    print(f"figure: {asked.out}")


if __name__ == "__main__":
    main()
