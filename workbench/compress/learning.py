"""What a student had recovered after how many tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from serving.plan import Variant
from workbench.compress.recipe import is_snapshot

_SCORES = ("recovery", "perplexity_ratio")


def learning_curves(variants: Sequence[Variant]) -> pd.DataFrame:
    """Recovery against tokens of every distilled variant: where it began, on the way, at the end.

    Args:    variants: judged ones; of those on the way (snapshots_of) what is there is shown.
    Returns: columns student, tokens, then recovery and perplexity_ratio, each with _low and _high;
             tokens is 0 for what a student began with, if that was judged.
    """
    by_name = {variant.name: variant for variant in variants}
    rows = []
    for student in variants:
        if student.method != "distil" or is_snapshot(student):
            continue
        young = [v for v in variants if is_snapshot(v) and v.name.startswith(f"{student.name}.")]
        begun = by_name.get(student.parent or "")
        stages = [(int(v.parameters["tokens"]), v) for v in (*young, student)]
        if begun is not None and not student.parameters.get("config"):
            stages.insert(0, (0, begun))
        for tokens, variant in stages:
            if variant.quality is not None:
                scores = {name: getattr(variant.quality, name) for name in _SCORES}
                row: dict[str, object] = {"student": student.name, "tokens": tokens}
                for name, score in scores.items():
                    row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
                rows.append(row)
    columns = [f"{name}{end}" for name in _SCORES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["student", "tokens", *columns])
