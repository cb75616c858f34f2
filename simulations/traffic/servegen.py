"""A client of ServeGen: rates and laws by 10 minutes and length histograms, from which is drawn."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from itertools import pairwise
from math import gamma
from pathlib import Path

import numpy as np
import pandas as pd

from serving.errors import InputError
from simulations.traffic.segments import IntArray
from simulations.traffic.trace import FloatArray, Trace

_BEFORE_GAPS = 200


def servegen(path: Path, seed: int) -> Trace:
    """One client: a renewal process per window of 600 s, lengths from the histogram of its 6 hours.

    Raises:  InputError: no lengths beside it.
    """
    columns = ["t_s", "rate", "cv", "pattern", "shape", "scale_s"]
    windows = pd.read_csv(path, header=None, names=columns)
    lengths = _lengths(path)
    rng = np.random.default_rng(seed)
    begins = [float(t_s) for t_s in windows["t_s"]]
    at_s: list[FloatArray] = []
    prompt: list[IntArray] = []
    output: list[IntArray] = []
    for row, (begin_s, end_s) in zip(
        windows.to_dict("records"), pairwise([*begins, begins[-1] + 600.0]), strict=True
    ):
        histograms = _of_window(lengths, begin_s)
        if float(row["rate"]) <= 0 or histograms is None:
            continue
        found = _times(
            str(row["pattern"]), float(row["shape"]), float(row["rate"]), end_s - begin_s, rng
        )
        at_s.append(begin_s + found)
        prompt.append(_draw(histograms[0], len(found), rng))
        output.append(_draw(histograms[1], len(found), rng))
    if not at_s:
        return Trace(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    return Trace(np.concatenate(at_s), np.concatenate(prompt), np.concatenate(output))


def _times(
    law: str, shape: float, rate_rps: float, length_s: float, rng: np.random.Generator
) -> FloatArray:
    """Arrivals of a Gamma or Weibull renewal process of the published shape and rate.

    The published scale gives another rate than the published one; the rate is what was counted. The
    process is found running: one that starts with the window sends too much, the more so the burstier.
    """
    mean = shape if law == "Gamma" else gamma(1 + 1 / shape)
    now_s, times = -_BEFORE_GAPS / rate_rps, []
    while now_s < length_s:
        drawn = rng.gamma(shape, 1.0, 256) if law == "Gamma" else rng.weibull(shape, 256)
        block = now_s + np.cumsum(drawn / mean / rate_rps)
        times.append(block)
        now_s = float(block[-1])
    found = np.concatenate(times)
    return found[(found >= 0) & (found < length_s)]


_Histogram = tuple[IntArray, FloatArray]


def _lengths(path: Path) -> dict[float, tuple[_Histogram, _Histogram]]:
    """By begin of the 6 hours: histograms of prompt and output lengths, where there are any."""
    beside = path.with_name(path.name.split("trace")[0] + "dataset.json")
    if not beside.exists():
        raise InputError(
            f"{path} has no lengths: {beside.name} is missing beside it",
            remedy="Put the client's dataset file there, or take lengths of your own.",
        )
    found = {}
    for window, fields in json.loads(beside.read_text()).items():
        # Each field is a Python dictionary in a string.
        histograms = [ast.literal_eval(fields[name]) for name in ("input_tokens", "output_tokens")]
        if all(histograms):
            prompt, output = (
                (np.array(list(h), dtype=np.int64), np.array(list(h.values())) / sum(h.values()))
                for h in histograms
            )
            found[float(window)] = (prompt, output)
    return found


def _of_window(
    lengths: Mapping[float, tuple[_Histogram, _Histogram]], at_s: float
) -> tuple[_Histogram, _Histogram] | None:
    """The histograms of the 6 hours; of the nearest that has some."""
    if not lengths:
        return None
    return lengths[min(lengths, key=lambda begin_s: abs(begin_s - at_s))]


def _draw(histogram: _Histogram, n: int, rng: np.random.Generator) -> IntArray:
    values, share = histogram
    return rng.choice(values, n, p=share)
