"""Which form of a step's time fits best: `python -m experiments.step_forms FOLDER...`.

Each folder holds measurements (`measurement.json` beside `steps.parquet`). Per variant and KV cache
type every form is fitted to three quarters of the steps, in blocks, with the same non-negative,
relative, robust regression, and judged on the rest. Then each is fitted to one pair of prompt and
answer lengths and asked for the others. Prints a table and, last, JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.fit import regression as r
from workbench.fit.shapes import label
from workbench.fit.steps import DECODE, KV, PREFILL, BoolArray, FloatArray, Steps, steps_of
from workbench.measure import Measurement

H100 = Path(__file__).parent / "results" / "h100"
Predict = Callable[[Steps], FloatArray]


def batch_only(steps: Steps) -> Predict:
    """a + b x batch: of steps that only decode, and to be asked of these alone."""
    decodes = _kind(steps, prefill=False)

    def design(of: Steps) -> FloatArray:
        return of.summed(of.terms[:, [0, DECODE]])

    found = r.descend(design(decodes), r.rows_of(decodes), (True, True))
    return lambda of: np.asarray(design(of) @ found)


def floor_outside(steps: Steps) -> Predict:
    """max(floor, base + prefill + decode + KV + attention), the floor by trial."""

    def design(of: Steps) -> FloatArray:
        return of.summed(of.terms[:, [0, PREFILL, DECODE, KV, 5]])

    whole, rows, count = design(steps), r.rows_of(steps), steps.summed(np.ones(len(steps)))
    best: tuple[float, float, FloatArray] | None = None
    for floor_s in (0.0, *np.quantile(steps.step_s, np.linspace(0.02, 0.7, 24))):
        above = np.ones(len(rows.took), dtype=bool)
        for _ in range(5):
            some = r.Rows(rows.took[above], rows.kind[above], rows.times[above])
            found = r.descend(whole[above], some, (True,) * 5)
            above = whole @ found > floor_s * count
            if above.sum() < 30:
                break
        predicted = np.maximum(floor_s * count, whole @ found)
        loss = r.cut_mean(np.abs(predicted / rows.took - 1), rows.kind)
        if best is None or loss < best[0]:
            best = loss, float(floor_s), found
    assert best is not None
    _, floor, coefficients = best

    def predict(of: Steps) -> FloatArray:
        return np.maximum(floor * of.summed(np.ones(len(of))), design(of) @ coefficients)

    return predict


def knee(steps: Steps) -> Predict:
    """base + per sequence + max(floor, tokens) + KV + attention + prefill: what `fit` fits."""
    both = bool(steps.server.any() and (~steps.server).any())
    return r.fit_terms(steps, (), mixed=both).predict


FORMS = {"a + b x batch": batch_only, "max(floor, linear)": floor_outside, "knee": knee}


def compare(measurements: list[Measurement], name: str) -> list[dict[str, object]]:
    """Errors of every form, in percent: of held-out steps, and of lengths that were not fitted."""
    steps = steps_of(measurements, 0.25, np.random.default_rng(0))
    shapes = np.array([label(m).split()[0] for m in measurements])[steps.point]
    rows = []
    for form, make in FORMS.items():
        predict, unseen = make(steps.where(~steps.held_out)), steps.where(steps.held_out)
        row: dict[str, object] = {"data": name, "steps": len(steps), "form": form}
        for kind, prefill in (("decode", False), ("prefill", True)):
            of = _kind(unseen, prefill=prefill)
            if form != "a + b x batch" or not prefill:
                off = np.abs(predict(of) / of.summed(of.step_s) - 1)
                row |= {f"{kind}_median": 100 * np.median(off), f"{kind}_mape": 100 * off.mean()}
        row |= _elsewhere(make, steps, shapes)
        rows.append(row)
    return rows


def _elsewhere(
    make: Callable[[Steps], Predict], steps: Steps, shapes: FloatArray
) -> dict[str, str]:
    """Median signed error of decodes at lengths that were not fitted, fitted to each one alone."""
    told = []
    for shape in np.unique(shapes):
        predict = make(steps.where(shapes == shape))
        others = _kind(steps.where(shapes != shape), prefill=False)
        if len(others):
            off = np.median(predict(others) / others.summed(others.step_s) - 1)
            told.append(f"{shape}: {100 * off:+.1f}")
    return {"one_shape_bias": ", ".join(told)}


def _kind(steps: Steps, *, prefill: bool) -> Steps:
    """Spells with prefill, or without."""
    first = steps.starts()
    chosen: BoolArray = (steps.summed(steps.terms[:, PREFILL]) > 0) == prefill
    return steps.where(np.repeat(chosen, np.diff([*first, len(steps)])))


def main(folders: list[Path]) -> None:
    """Compare the forms on each variant of each folder."""
    rows: list[dict[str, object]] = []
    for folder in folders:
        groups: dict[str, list[Measurement]] = {}
        for path in sorted(folder.glob("*/measurement.json")):
            m = Measurement.read(path.parent)
            if not m.invalid and len(m.steps):
                name = f"{folder.name} {m.variant.name} {m.engine.kv_cache_dtype or 'auto'}"
                groups.setdefault(name, []).append(m)
        for name, measurements in groups.items():
            rows += compare(measurements, name)
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    print(json.dumps(rows))


if __name__ == "__main__":
    main([Path(a) for a in sys.argv[1:]] or [H100 / "batching", H100 / "payoff-8b"])
