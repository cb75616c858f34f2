"""Prometheus itself is the judge: the exported expressions and alerts on the samples of the twin."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from serving.alerts import ALERTS
from serving.promql import Average, Series, text
from serving.signals import SIGNALS
from simulations.metrics import Alerting
from tests.simulations.metrics.made import asked_of_promtool, scraped

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)
STEPS = 58
SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_signal_is_what_prometheus_answers(seed: int, tmp_path: Path) -> None:
    """At the edges of windows, between scrapes, and after the last of them."""
    telemetry = scraped(seed, STEPS)
    times = [15.0, 52.0, 300.0, 607.0, 852.5, 899.0, 1150.0]
    asked = [
        (text(expression), at_s)
        for signal in SIGNALS.values()
        for expression in (signal.per_pod, signal.total)
        for at_s in times
    ]
    answers = iter(asked_of_promtool(telemetry, STEPS, asked, tmp_path))
    for signal in SIGNALS.values():
        pods = [telemetry.visible(signal.name, at_s) for at_s in times]
        totals = [telemetry.over_all(signal.name, at_s) for at_s in times]
        for at_s, ours in zip(times, pods, strict=True):
            theirs = {k.split('"')[1]: v for k, v in next(answers).items()}
            found = {str(pod): value for pod, value in ours.items()}
            assert found == pytest.approx(theirs, rel=1e-9, nan_ok=True), (signal.name, at_s)
        for at_s, total in zip(times, totals, strict=True):
            value = list(next(answers).values())
            ours_too = [] if total is None else [total]
            assert ours_too == pytest.approx(value, rel=1e-9, nan_ok=True), (signal.name, at_s)


def test_an_average_over_time_is_prometheus_s(tmp_path: Path) -> None:
    telemetry = scraped(0, STEPS)
    expression = Average(Series("vllm:num_requests_running"), 60)
    (theirs,) = asked_of_promtool(telemetry, STEPS, [(text(expression), 607)], tmp_path)
    found = telemetry.query([607.0])(expression)
    ours = found.values[0, found.present[0, :, 0], 0]
    assert sorted(ours) == pytest.approx(sorted(theirs.values()))


@pytest.mark.parametrize("seed", SEEDS)
def test_alerts_fire_when_those_of_the_bundle_do(seed: int, tmp_path: Path) -> None:
    telemetry = scraped(seed, STEPS)
    fired = Alerting(telemetry, interval_s=15).fired(STEPS * 15.0 - 1)
    times = np.arange(0.0, STEPS * 15.0, 15.0)
    asked = [
        (f'ALERTS{{alertname="{alert.name}",alertstate="firing"}}', float(at_s))
        for alert in ALERTS
        for at_s in times
    ]
    answers = iter(asked_of_promtool(telemetry, STEPS, asked, tmp_path))
    for alert in ALERTS:
        rows = fired[fired["alert"] == alert.name]
        for at_s in times:
            ours = ((rows["started_at_s"] <= at_s) & (at_s < rows["ended_at_s"])).any()
            assert ours == bool(next(answers)), (alert.name, at_s)


def test_the_made_up_pods_fire_most_of_the_alerts() -> None:
    """Else the comparison would say little."""
    fired = {
        name
        for seed in SEEDS
        for name in Alerting(scraped(seed, STEPS), interval_s=15).fired(870.0)["alert"]
    }
    assert len(fired) >= len(ALERTS) - 1, fired
