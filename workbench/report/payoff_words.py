"""The payoff map in words, each of them made from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.compress.learning import learning_curves
from workbench.report.words import percent

if TYPE_CHECKING:
    from workbench.payoff import Payoff


def paragraph(payoff: Payoff) -> str:
    """What is fastest without losing quality, what crosses, what is marked, what is learnt, the claim."""
    table = payoff.table
    parts = [
        *_fastest(payoff),
        *_crossing(payoff),
        *_marked(table),
        *_taught(payoff),
        *_claims(payoff),
    ]
    return " ".join(parts)


def _fastest(payoff: Payoff) -> list[str]:
    table, said = payoff.table, []
    judged = table["quality"] != "not judged"
    enough = table[table["quality"] == "keeps"] if judged.any() else table
    for (prompt, output), rows in enough.groupby(["prompt_tokens", "output_tokens"], sort=False):
        for batch in (rows["batch"].min(), rows["batch"].max()):
            at = rows[(rows["batch"] == batch) & (rows["variant"] != payoff.parent)]
            if at.empty:
                continue
            best = at.loc[at["speedup"].idxmax()]
            where = f"at batch {batch:g} with {prompt:g} tokens in and {output:g} out"
            if best["low"] > 1:
                said.append(f"{where} {best['variant']} is fastest, {_times(best)} the parent")
            elif best["high"] < 1:
                said.append(
                    f"{where} nothing is faster than the parent: {best['variant']}"
                    f" comes to {_times(best)}"
                )
            else:
                said.append(
                    f"{where} nothing is told apart from the parent: {best['variant']}"
                    f" comes to {_times(best)}"
                )
    if not said:
        return ["No variant keeps the quality with confidence."]
    head = "Of the variants that keep the quality" if judged.any() else "By speed alone, unjudged"
    return [f"{head}: {'; '.join(said)}."]


def _crossing(payoff: Payoff) -> list[str]:
    crossed = payoff.crossovers()
    if crossed.empty:
        return ["No variant overtakes another as the batch grows."]
    crossed = crossed.assign(
        swing=crossed["ahead_by"] / crossed["behind_by"],
        of_parent=(crossed[["first", "then"]] == payoff.parent).any(axis=1),
    ).sort_values(["of_parent", "swing"], ascending=False)
    told = [
        f"{row['first']} is ahead of {row['then']} at batch {row['from_batch']:g}"
        f" ({row['ahead_by']:.2f}x) and behind at {row['to_batch']:g} ({row['behind_by']:.2f}x),"
        f" {row['prompt_tokens']:g} tokens in and {row['output_tokens']:g} out"
        for row in crossed.head(3).to_dict("records")
    ]
    more = f" ({len(crossed)} such changes in all)" if len(crossed) > len(told) else ""
    return [f"The order changes with the load: {'; '.join(told)}{more}."]


def _marked(table: pd.DataFrame) -> list[str]:
    said = []
    for verdict, what in (("in doubt", "cannot be told to keep"), ("loses", "do not keep")):
        rows = table[table["quality"] == verdict].drop_duplicates("variant")
        if len(rows):
            names = ", ".join(
                f"{row['variant']} ({percent(row['recovery'])} of the parent's score)"
                for row in rows.to_dict("records")
            )
            said.append(f"These {what} the quality that is asked for: {names}.")
    return said


def _taught(payoff: Payoff) -> list[str]:
    said = []
    for student, curve in learning_curves(payoff.variants).groupby("student", sort=False):
        first, last = curve.iloc[0], curve.iloc[-1]
        if first["tokens"] == 0 and len(curve) > 1:
            said.append(
                f"{student} goes from {percent(first['recovery'])} of the parent's score and"
                f" {first['perplexity_ratio']:.2f} times its perplexity to"
                f" {percent(last['recovery'])} and {last['perplexity_ratio']:.2f} times in"
                f" {last['tokens']:,} tokens"
            )
    return [f"Distillation: {'; '.join(said)}."] if said else []


def _claims(payoff: Payoff) -> list[str]:
    from workbench.payoff import CLAIM_LOSS, CLAIM_SIZE, CLAIM_SPEED

    said = []
    low, high = CLAIM_SPEED
    for before in ("fp32", payoff.parent):
        found = payoff.claim(before)
        if found is None or found["speed"].empty:
            continue
        speed = found["speed"]["speedup"]
        text = (
            f"From {before} to {found['after']} is {found['size_ratio']:.1f}x smaller and"
            f" {speed.min():.2f} to {speed.max():.2f}x as fast"
        )
        kept = found["kept"]
        if kept is not None:
            text += f", and keeps {percent(kept.value)} ({_range(kept)}) of the parent's score"
        if before == "fp32":
            text += f"; the usual claim is {CLAIM_SIZE:g}x, {low:g} to {high:g}x and {1 - CLAIM_LOSS:.0%}"
        said.append(text + ".")
    return said


def _times(row: Any) -> str:
    return f"{row['speedup']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"


def _range(estimate: Any) -> str:
    return f"{percent(estimate.low)} to {percent(estimate.high)}"
