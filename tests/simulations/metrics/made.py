"""Pods made up from a seed, what a scraper finds of them, and what promtool makes of the same samples."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serving.alerts import ALERTS
from serving.manifests.monitoring import rule_groups
from serving.promql import text
from simulations.engine import BUCKETS_S, Reading
from simulations.metrics import Pipeline, Telemetry

STEP_S = 15.0
AT_ONCE = Pipeline(gpu_exporter_s=0, query_age_s=0, relist_s=0, prometheus=2)
"""Nothing between a sample and the query, under the semantics of the promtool that Debian has."""


class MadePod:
    """Counters that grow as somebody drew them; `restart` starts them again."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.restart(0.0)

    def restart(self, at_s: float) -> None:
        self._started_s = at_s
        self._sums = {"ttft": 0.0, "e2e": 0.0}
        self._counts = {name: np.zeros(len(BUCKETS_S[name]) + 1, np.int64) for name in self._sums}
        self._ends = dict.fromkeys(("finished", "aborted", "failed", "rejected"), 0)
        self._busy_s = 0.0

    def live(self, requests: int, mean_s: float, bad: float, busy: float) -> Reading:
        """A scrape interval later."""
        for name, factor in (("ttft", 1.0), ("e2e", 4.0)):
            took_s = self._rng.exponential(mean_s * factor, requests)
            self._sums[name] += float(took_s.sum())
            where = np.searchsorted(BUCKETS_S[name], took_s)
            np.add.at(self._counts[name], where, 1)
        self._ends["finished"] += requests
        for why in ("aborted", "failed", "rejected"):
            self._ends[why] += int(self._rng.binomial(requests, bad))
        self._busy_s += STEP_S * busy
        return Reading(
            started_s=self._started_s,
            running=int(self._rng.integers(0, 20)),
            waiting=int(self._rng.integers(0, 5)),
            kv_usage=min(1.0, busy * self._rng.uniform(0.95, 1.05)),
            busy_s=self._busy_s,
            active_s=self._busy_s,
            ttft_sum_s=self._sums["ttft"],
            ttft_count=int(self._counts["ttft"].sum()),
            e2e_sum_s=self._sums["e2e"],
            histograms={name: count.copy() for name, count in self._counts.items()},
            **self._ends,
        )


def scraped(seed: int, steps: int, pipeline: Pipeline = AT_ONCE) -> Telemetry:
    """Four pods for so many scrapes: one comes late, one restarts, one goes; quiet, busy, quiet."""
    rng = np.random.default_rng(seed)
    telemetry = Telemetry(pipeline, memory_share=0.92)
    pods = [MadePod(rng) for _ in range(4)]
    comes, falls, goes = rng.integers(3, steps - 5, 3)
    rushes, calms = sorted(rng.integers(0, steps, 2))
    for step in range(steps):
        at_s = step * STEP_S
        rush = rushes <= step < calms
        readings: dict[int, Reading] = {}
        loading: list[int] = []
        for number, pod in enumerate(pods):
            if (number == 1 and step < comes) or (number == 2 and falls <= step < falls + 2):
                loading.append(number)
                pod.restart(at_s)
            elif number != 3 or step < goes:
                requests = int(rng.poisson(60 if rush else 20))
                readings[number] = pod.live(
                    requests, 0.6 if rush else 0.1, 0.02 if rush else 0.001, 0.95 if rush else 0.4
                )
        if step == goes:
            telemetry.vanish(at_s, 3)
        telemetry.scrape(at_s, readings, loading)
    return telemetry


def input_series(telemetry: Telemetry, steps: int) -> list[dict[str, str]]:
    """All samples as promtool reads them: `_` where there is none, `stale` for a marker."""
    found = []
    for metric, columns in telemetry._layout.items():
        samples = columns.samples
        for place in np.flatnonzero(samples.target >= 0):
            at = {float(t): i for i, t in enumerate(samples.times[place]) if np.isfinite(t)}
            for i, extra in enumerate(columns.labels):
                labels = {"pod": str(samples.target[place]), **extra}
                values = []
                for step in range(steps):
                    row = at.get(step * STEP_S)
                    value = "_"
                    if row is not None:
                        sample = float(samples.raw[place, row, columns.begin + i])
                        value = repr(sample) if samples.live[place, row] else "stale"
                    values.append(value)
                said = ",".join(f'{name}="{value}"' for name, value in labels.items())
                found.append({"series": f"{metric}{{{said}}}", "values": " ".join(values)})
    return found


def asked_of_promtool(
    telemetry: Telemetry, steps: int, asked: Sequence[tuple[str, float]], folder: Path
) -> list[dict[str, float]]:
    """What Prometheus answers to each (expression, time in s): {its labels: value}."""
    (folder / "rules.yml").write_text(yaml.safe_dump(rule_groups()))
    # It says what it got only where it expected something else.
    wrong = [{"labels": "{}", "value": -12345}]
    tests = [
        {"expr": expression, "eval_time": f"{int(at_s * 1000)}ms", "exp_samples": wrong}
        for expression, at_s in asked
    ]
    case: dict[str, Any] = {
        "interval": f"{STEP_S:g}s",
        "input_series": input_series(telemetry, steps),
        "promql_expr_test": tests,
    }
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [case]}
    (folder / "test.yml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], capture_output=True, text=True, cwd=folder
    )
    said = done.stdout + done.stderr
    answers = re.findall(r"got:\s*(.*)", said)
    assert len(answers) == len(asked), said[:2000]
    return [_samples(answer) for answer in answers]


def _samples(answer: str) -> dict[str, float]:
    """For example `{pod="1"} 5E-01, {pod="2"} NaN` or `nil`."""
    found = re.findall(r"(\{[^}]*\}) ([-+.\dEeNaInf]+)", answer)
    return {labels: float(value) for labels, value in found}


def exported(name: str) -> str:
    """The expression of an alert as the bundle has it."""
    (alert,) = (alert for alert in ALERTS if alert.name == name)
    return text(alert.expression)
