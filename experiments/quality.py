"""What does a model of 107 M parameters keep when it is quantized, pruned and distilled?

    python -m experiments.quality [FOLDER] [--out quality.html]

FOLDER holds cards.json, the judged variants, and trained.json, the cards of the teacher and of smaller
models trained on the same tokens; without it the results of an H100 that lie beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.plan import Variant
from serving.values import Estimate
from simulations import theme
from workbench.compress.learning import learning_curves
from workbench.compress.recipe import is_snapshot
from workbench.measure.study import read_study
from workbench.payoff import Payoff
from workbench.progress import print_table

if TYPE_CHECKING:
    import plotly.graph_objects as go

H100 = Path(__file__).parent / "results" / "h100"
RESULTS, SPEEDS = H100 / "quality-107m", H100 / "payoff-8b"
LOSS = 0.01
"""Share of the tasks that INT8 may lose, by the usual advice."""
SHARES = (15, 30, 50)
STUDENTS = {
    "pruned-50-distilled": "pruned, learns from the teacher",
    "pruned-50-trained": "pruned, learns from text alone",
    "scratch-50": "random weights, learns from text alone",
}
"""The same shape and the same tokens, begun and taught differently."""


def variants_of(folder: Path) -> dict[str, Variant]:
    """The judged variants, by name."""
    cards = json.loads((folder / "cards.json").read_text())
    return {card["name"]: Variant.model_validate(card) for card in cards}


def table(variants: Mapping[str, Variant]) -> pd.DataFrame:
    """One row per variant, students on the way left out: size, perplexity over the parent's, recovery."""
    rows = []
    for name, variant in variants.items():
        quality = variant.quality
        if quality is None or is_snapshot(variant):
            continue
        row: dict[str, Any] = {"variant": name, "mib": variant.size_mib}
        scores = {"perplexity_ratio": quality.perplexity_ratio, "recovery": quality.recovery}
        for what, score in scores.items():
            row |= {what: score.value, f"{what}_low": score.low, f"{what}_high": score.high}
        rows.append(row | {"at 1 %": quality.verdict(LOSS)})
    return pd.DataFrame(rows)


def answer(variants: Mapping[str, Variant], trained: Mapping[str, Any]) -> str:
    """The questions' answers, a line each, with the figures."""
    return "\n".join(
        (_of_int8(variants), *_of_pruning(variants), _of_distilling(variants), _of_text(trained))
    )


def _of_int8(variants: Mapping[str, Variant]) -> str:
    kept = variants["int8-gptq"].quality
    assert kept is not None
    loses = {"keeps": "loses less than", "in doubt": "may lose", "loses": "loses more than"}
    return (
        f"INT8 {loses[kept.verdict(LOSS)]} {LOSS:.0%} of the tasks: it keeps {_percent(kept.recovery)},"
        f" at {_times(kept.perplexity_ratio)} the perplexity."
    )


def _of_pruning(variants: Mapping[str, Variant]) -> list[str]:
    lines = []
    for share in SHARES:
        before = variants[f"pruned-{share}"].quality
        after = variants.get(f"pruned-{share}-distilled")
        assert before is not None
        line = (
            f"Without {share} % of its weights it keeps {_percent(before.recovery)} of the tasks at"
            f" {_times(before.perplexity_ratio)} the perplexity"
        )
        if after is None or after.quality is None:
            lines.append(f"{line}; distilled it was not measured.")
            continue
        lines.append(
            f"{line}, distilled on {int(after.parameters['tokens']):,} tokens"
            f" {_percent(after.quality.recovery)} at {_times(after.quality.perplexity_ratio)}."
        )
    return lines


def _of_distilling(variants: Mapping[str, Variant]) -> str:
    parts = []
    for name, how in STUDENTS.items():
        quality = variants[name].quality
        assert quality is not None
        parts.append(
            f"{how}: {_times(quality.perplexity_ratio)} the perplexity, {_percent(quality.recovery)}"
        )
    return f"Half the weights, {_tokens(variants):,} tokens each: {'; '.join(parts)}."


def _tokens(variants: Mapping[str, Variant]) -> int:
    """What each of the students learnt from; they are compared only where it is the same."""
    (tokens,) = {int(variants[name].parameters["tokens"]) for name in STUDENTS}
    return tokens


def _of_text(trained: Mapping[str, Any]) -> str:
    told = [
        f"{card['parameters'] / 1e6:.0f} M parameters {card['heldout']['bits_per_byte']:.3f} bits a byte"
        f" and {card['tasks']['accuracy']:.1%} of the tasks"
        for card in trained.values()
    ]
    return f"The same tokens teach {', '.join(told)}."


def _percent(score: Estimate) -> str:
    return f"{score.value:.1%} [{score.low:.1%}, {score.high:.1%}]"


def _times(score: Estimate) -> str:
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}] times"


def with_speeds(variants: Mapping[str, Variant], folder: Path = SPEEDS) -> Payoff:
    """The payoff map of an 8B's speeds and this model's quality, where both have the same scheme.

    Two models, so a map for a choice of scheme and no claim about either.
    """
    result = read_study(folder)
    measured = {m.variant.name for m in result.measurements}
    return Payoff.of(result, [v for name, v in variants.items() if name in measured])


def figures(variants: Mapping[str, Variant]) -> list[go.Figure]:
    """Perplexity against the tokens that students learnt from, and tasks kept against size."""
    return [_by_tokens(variants), _by_size(variants)]


def _by_tokens(variants: Mapping[str, Variant]) -> go.Figure:
    curves = learning_curves(list(variants.values()))
    drawn = theme.canvas(
        "Half the weights: perplexity over the teacher's, by tokens learnt from",
        theme.axis("million tokens", rangemode="tozero"),
        theme.log_axis("perplexity over the teacher's (×)", curves["perplexity_ratio"]),
    )
    looks = theme.looks(STUDENTS)
    for name, how in STUDENTS.items():
        rows = curves[curves["student"] == name]
        _scatter(
            drawn, rows["tokens"] / 1e6, rows, "perplexity_ratio", how, looks[name], lines=True
        )
    return drawn


def _by_size(variants: Mapping[str, Variant]) -> go.Figure:
    shown = table(variants)
    shown = shown[shown["recovery"] > 1 / 2]
    drawn = theme.canvas(
        "Tasks kept of the teacher's, by size",
        theme.log_axis("weights (MiB)", shown["mib"]),
        theme.axis("tasks kept", tickformat=".0%"),
    )
    kinds = {
        "distilled": "pruned and distilled",
        "trained": "pruned, learns from text alone",
        "pruned": "pruned alone",
        "": "not pruned",
    }
    looks = theme.looks(kinds.values())
    left = shown["variant"]
    for part, kind in kinds.items():
        chosen = left[left.str.contains(part, regex=False)]
        left = left.drop(chosen.index)
        rows = shown.loc[chosen.index]
        _scatter(drawn, rows["mib"], rows, "recovery", kind, looks[kind])
    return drawn


def _scatter(
    drawn: go.Figure,
    x: pd.Series,
    rows: pd.DataFrame,
    what: str,
    name: str,
    look: theme.Look,
    *,
    lines: bool = False,
) -> None:
    drawn.add_scatter(
        x=x,
        y=rows[what],
        name=name,
        mode="lines+markers" if lines else "markers",
        line={"color": look.colour, "width": 2},
        marker={"symbol": look.symbol, "size": 8, "color": look.colour},
        error_y=theme.error_bars(rows[what], rows[f"{what}_low"], rows[f"{what}_high"]),
        text=rows.get("variant", None),
        hovertemplate="%{text} %{x:.4g}: %{y:.4f}",
    )


def main() -> None:
    """Print the answers and the table, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("quality.html"))
    asked = parser.parse_args()
    variants = variants_of(asked.folder)
    print_table(table(variants))
    print(answer(variants, json.loads((asked.folder / "trained.json").read_text())))
    judged_on = {v.quality.judged_on for v in variants.values() if v.quality}
    print(f"judged on {'; '.join(sorted(judged_on))}")
    if asked.folder == RESULTS and SPEEDS.exists():
        print(f"With the speeds of an 8B, which is another model: {with_speeds(variants).words()}")
    bare = {"displayModeBar": False}
    drawn = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, config=bare)
        for number, figure in enumerate(figures(variants))
    ]
    asked.out.write_text("<meta charset='utf-8'>" + "".join(drawn))
    print(f"figures: {asked.out}")


if __name__ == "__main__":
    main()
