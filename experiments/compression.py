"""Which compression pays on an H100, at which load, in speed, memory and energy? From a study's points.

    python -m experiments.compression [FOLDER ...] [--out compression.html]

A folder is what `workbench study` or `workbench payoff` left, with the device's ceilings in or beside it;
without any, the results of an H100 beside this file, of different days. Ratios never mix folders.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from simulations import theme
from workbench.measure.roofline import Ceilings
from workbench.measure.study import StudyResult, read_study
from workbench.payoff import CLAIM_SIZE, CLAIM_SPEED, Payoff
from workbench.progress import print_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

_H100 = Path(__file__).parent / "results" / "h100"
RESULTS = tuple(
    _H100 / name for name in ("compression-8b", "payoff-8b", "compression-8b-2", "compression-1b")
)
FOUR_BIT = ("int4-gptq", "int4-awq", "bnb-nf4")
_LOAD = ["variant", "prompt_tokens", "output_tokens", "batch"]
_COSTS = ("power_mean_w", "joules_per_token", "mbu", "mfu", "roofline_share")


@dataclass(frozen=True)
class Found:
    """One folder: its points, the map that they make, and what each load cost.

    Attributes:
        costs: one row per variant and load, means over repeats: power_mean_w, joules_per_token, mbu, mfu,
            roofline_share (the last three where ceilings lie in or beside the folder).
    """

    name: str
    result: StudyResult
    payoff: Payoff
    costs: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Found:
        """Read a folder with its ceilings.

        Raises:  InputError: no study lies there, or none that can be mapped.
        """
        result, payoff = read_study(folder), Payoff.read(folder)
        kept = [*folder.glob("ceilings-*.json"), *folder.parent.glob("ceilings-*.json")]
        points = result.frame(ceilings=Ceilings.read(kept[0]) if kept else None)
        points = points[points["valid"]]
        named = [name for name in _COSTS if name in points]
        return cls(folder.name, result, payoff, points.groupby(_LOAD)[named].mean().reset_index())

    def slower_than_parent(self) -> pd.DataFrame:
        """Loads at which a 4-bit variant is no faster than the parent, by all repeats' mean."""
        table = self.payoff.table
        return table[table["variant"].isin(FOUR_BIT) & (table["speedup"] <= 1)]


def answers(found: Found) -> list[str]:
    """A sentence for each question that the points can answer."""
    said = []
    claim = found.payoff.claim()
    if claim is not None:
        speed, (low, high) = claim["speed"], CLAIM_SPEED
        said.append(
            f"FP32 to INT8: {claim['size_ratio']:.2g} times smaller (the article: {CLAIM_SIZE:g}),"
            f" {speed['speedup'].min():.2g} to {speed['speedup'].max():.2g} times faster"
            f" ({low:g} to {high:g})."
        )
    gains = found.result.gains(32, over=1)
    if not gains.empty:
        said.append(
            f"Batch 32 instead of 1: {gains['gain'].min():.1f} to {gains['gain'].max():.1f} times the"
            " output tokens a second (the article: 5)."
        )
    crossed = found.payoff.crossovers()
    for row in crossed[crossed["first"].isin(FOUR_BIT)].to_dict("records"):
        said.append(
            f"{row['prompt_tokens']:g} to {row['output_tokens']:g} tokens: {row['first']} is"
            f" {row['ahead_by']:.2f} times as fast as {row['then']} at batch {row['from_batch']:g}, and"
            f" {row['behind_by']:.2f} times at {row['to_batch']:g}."
        )
    for row in found.slower_than_parent().to_dict("records"):
        said.append(
            f"{row['prompt_tokens']:g} to {row['output_tokens']:g} tokens, batch {row['batch']:g}:"
            f" {row['variant']} is no faster than {found.payoff.parent} ({row['speedup']:.2f})."
        )
    return said


def figures(found: Found, prompt_tokens: int = 128, output_tokens: int = 128) -> list[go.Figure]:
    """Speed-up over the parent and energy per token, by batch, at one pair of lengths."""
    lengths = {"prompt_tokens": prompt_tokens, "output_tokens": output_tokens}
    both = found.payoff.table.merge(found.costs, on=_LOAD, suffixes=("", "_mean"))
    rows = both[(both[list(lengths)] == pd.Series(lengths)).all(axis=1)]
    batches = theme.batch_axis(rows["batch"])
    title = f"{prompt_tokens} → {output_tokens} tokens, Llama-3-8B's shape, one H100"
    speed = theme.canvas(
        f"Speed-up over {found.payoff.parent}, {title}", batches, theme.axis("speed-up (×)")
    )
    energy = theme.canvas(
        f"Energy per output token, {title}",
        batches,
        theme.log_axis("joules per token", rows["joules_per_token"]),
    )
    looks = theme.looks(rows["variant"], parent=found.payoff.parent)
    for name, track in rows.groupby("variant", sort=False):
        look = looks[str(name)]
        track = track.sort_values("batch")
        drawn = {
            "x": track["batch"],
            "name": str(name),
            "mode": "lines+markers",
            "line": {"color": look.colour, "width": 2},
            "marker": {"symbol": look.symbol, "size": 8},
        }
        bars = theme.error_bars(track["speedup"], track["low"], track["high"])
        speed.add_scatter(y=track["speedup"], error_y=bars, **drawn)
        energy.add_scatter(y=track["joules_per_token"], **drawn)
    return [speed, energy]


def main() -> None:
    """Print tables and answers, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, default=list(RESULTS))
    parser.add_argument("--out", type=Path, default=Path("compression.html"))
    asked = parser.parse_args()
    drawn = []
    for folder in asked.folders:
        found = Found.read(folder)
        print(f"\n{found.name}")
        shown = ["speedup", "low", "high", "repeats", "ttft_p50_s", "tpot_p50_s"]
        columns = [*_LOAD, "output_tokens_per_s", *shown, "kv_capacity_tokens"]
        print_table(found.payoff.table[columns].merge(found.costs, on=_LOAD))
        print("\n".join(answers(found)))
        for environment in sorted({m.environment.describe() for m in found.result.measurements}):
            print(f"measured on {environment}")
        drawn += figures(found)
    pages = [
        figure.to_html(full_html=False, include_plotlyjs=not i, config={"displayModeBar": False})
        for i, figure in enumerate(drawn)
    ]
    asked.out.write_text("<!doctype html><meta charset=utf-8>" + "".join(pages))
    print(f"figures: {asked.out}")


if __name__ == "__main__":
    main()
