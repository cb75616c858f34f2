"""The pipeline by hand: rates, quantiles, ends of series, ages, alerts, and what is noise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.alerts import ALERTS, Alert
from serving.errors import InputError
from serving.hpa import (
    E2E_P99,
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_PER_SECOND,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    TTFT_P99,
)
from serving.promql import Aggregate, Compute, Series
from serving.signals import SIGNALS
from simulations.engine import BUCKETS_S, DataPlane, Reading, SchedulerOptions, request_frame
from simulations.metrics import Alerting, Pipeline, Telemetry, noise
from simulations.metrics.promql import Vector, quantile, rate
from simulations.metrics.samples import Samples
from tests.simulations.models import ENGINE, latency, workload

LIVE = Pipeline(gpu_exporter_s=0, query_age_s=0, relist_s=0)


def reading(
    running: int = 0, busy_s: float = 0.0, started_s: float = 0.0, **changes: int
) -> Reading:
    return Reading(started_s, running, 0, 0.0, busy_s, busy_s, 0.0, 0, **changes)


def counter(times: list[float], values: list[float], prometheus: int = 3) -> Samples:
    samples = Samples(np.array([True]), 100, prometheus=3 if prometheus == 3 else 2)
    for at_s, value in zip(times, values, strict=True):
        samples.write(at_s, [0], np.array([[value]]))
    return samples


def rate_of(samples: Samples, since_s: float, until_s: float) -> float:
    window = samples.between(np.array([since_s]), np.array([until_s]))
    place = int(np.flatnonzero(samples.target == 0)[0])
    assert window.count[0, place] > 1
    return float(rate(samples, window)[0, place, 0])


# -- rate() ---------------------------------------------------------------------------------------


def test_a_rate_is_extrapolated_to_the_ends_of_its_window() -> None:
    """Samples at 10, 25, 40, 55 of (0, 60]: 45 s apart, 10 s and 5 s to the ends."""
    samples = counter([10, 25, 40, 55], [100, 115, 130, 145])
    assert rate_of(samples, 0, 60) == pytest.approx(45 * (60 / 45) / 60)


def test_an_end_that_is_far_is_met_half_a_step() -> None:
    """16.5 s would be 1.1 steps: 20 s to the end count as 7.5."""
    samples = counter([10, 25, 40], [100, 115, 130])
    assert rate_of(samples, 0, 60) == pytest.approx(30 * (30 + 10 + 7.5) / 30 / 60)


def test_a_counter_is_not_extrapolated_to_before_it_was_zero() -> None:
    """3 at 1 a second: zero was 3 s before the first sample."""
    samples = counter([10, 25, 40, 55], [3, 18, 33, 48])
    assert rate_of(samples, 0, 60) == pytest.approx(45 * (45 + 3 + 5) / 45 / 60)


def test_a_reset_loses_nothing_that_was_scraped() -> None:
    samples = counter([0, 15, 30, 45, 60], [1000, 1010, 4, 14, 24])
    assert rate_of(samples, -1, 61) == pytest.approx((10 + 4 + 20) * 62 / 60 / 62)


def test_the_beginning_of_a_window_is_left_out_since_prometheus_3() -> None:
    for prometheus, count in ((3, 4), (2, 5)):
        samples = counter([0, 15, 30, 45, 60], [0, 1, 2, 3, 4], prometheus)
        window = samples.between(np.array([0.0]), np.array([60.0]))
        assert window.count.max() == count


@given(
    st.lists(st.integers(0, 1000), min_size=5, max_size=30),
    st.integers(1, 29),
)
def test_a_restart_adds_up(steps: list[int], restart: int) -> None:
    """The increase over all samples is all that was counted since the first, whenever it restarts."""
    values, counted, total = [], 0, 0
    for i, step in enumerate(steps):
        if i == restart:
            counted = 0
        counted += step
        total += step if i > 0 else 0
        values.append(float(counted))
    if 0 < restart < len(steps) and steps[restart] >= sum(steps[:restart]):
        return  # grown beyond what it was: nobody can tell
    samples = counter([15.0 * i for i in range(len(values))], values)
    place = int(np.flatnonzero(samples.target == 0)[0])
    ring = samples.unreset[place, : len(values), 0]
    assert ring[-1] - ring[0] == total


# -- histogram_quantile() -------------------------------------------------------------------------


def quantile_of(share: float, edges: list[str], counts: list[float]) -> float:
    values = np.array([[counts]], dtype=float)
    labels = tuple({"le": edge} for edge in edges)
    found = quantile(share, Vector(values, np.ones_like(values, dtype=bool), labels))
    return float(found.values[0, 0, 0])


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, [10, 20, 20], 0.1),
        (0.75, [10, 20, 20], 0.3),
        (0.25, [10, 20, 20], 0.05),
        (0.99, [10, 20, 30], 0.5),
        (0.5, [0, 0, 0], np.nan),
        (0.5, [0, 10, 10], 0.3),
    ],
)
def test_a_quantile_is_linear_in_its_bucket(
    share: float, counts: list[float], expected: float
) -> None:
    found = quantile_of(share, ["0.1", "0.5", "+Inf"], counts)
    assert found == pytest.approx(expected, nan_ok=True)


# -- ends of series -------------------------------------------------------------------------------


def seen(telemetry: Telemetry, at_s: float) -> dict[int, float]:
    return telemetry.visible(REQUESTS_RUNNING, at_s)


def test_a_series_ends_with_its_pod_or_five_minutes_after_it() -> None:
    for markers, until_s in ((True, 22.0), (False, 315.0)):
        telemetry = Telemetry(LIVE.model_copy(update={"stale_markers": markers}))
        telemetry.scrape(15, {0: reading(3), 1: reading(4)})
        telemetry.vanish(22, 0)
        assert seen(telemetry, 21.9) == {0: 3, 1: 4}
        telemetry.scrape(until_s, {1: reading(5)})
        assert seen(telemetry, until_s - 0.1)[1] == 4
        assert seen(telemetry, until_s) == {1: 5}
        assert telemetry.over_all(REQUESTS_RUNNING, until_s) == 5


def test_a_server_that_does_not_answer_is_missing_and_its_gpu_idle() -> None:
    telemetry = Telemetry(LIVE)
    telemetry.scrape(15, {0: reading(3, busy_s=10)}, loading=[1])
    telemetry.scrape(30, {}, loading=[0], down=[1])
    assert seen(telemetry, 29) == {0: 3}
    assert seen(telemetry, 30) == {}
    assert telemetry.visible(GPU_UTILISATION, 29) == {0: pytest.approx(100 * 10 / 15), 1: 0}
    assert telemetry.visible(GPU_UTILISATION, 30) == {0: 0}
    assert telemetry.over_all(REQUESTS_RUNNING, 30) is None


def test_a_rate_keeps_what_a_pod_that_is_gone_has_counted() -> None:
    telemetry = Telemetry(LIVE)
    for step in range(1, 5):
        telemetry.scrape(15.0 * step, {0: reading(finished=30 * step)})
    telemetry.vanish(61, 0)
    assert telemetry.over_all(REQUESTS_PER_SECOND, 65) == pytest.approx(2, rel=0.1)
    assert telemetry.over_all(REQUESTS_RUNNING, 65) is None
    for step in range(5, 200):
        telemetry.scrape(15.0 * step, {step: reading()})
        telemetry.vanish(15.0 * step + 1, step)
    assert telemetry._server.times.shape[0] <= 128, "places are used again"


def test_pods_left_out_are_in_no_total() -> None:
    telemetry = Telemetry(LIVE)
    telemetry.scrape(15, {0: reading(3), 1: reading(4), 2: reading(5)})
    assert telemetry.over_all(REQUESTS_RUNNING, 15, without=[1]) == 8
    assert telemetry.over_all(REQUESTS_RUNNING, 15, without=[0, 1, 2]) is None


# -- ages -----------------------------------------------------------------------------------------


def test_the_gpu_is_as_old_as_its_exporter() -> None:
    telemetry = Telemetry(Pipeline(relist_s=0, query_age_s=5))
    telemetry.collect(10, {0: (9.0, 0.0)})
    telemetry.scrape(15, {0: reading(busy_s=10)})
    telemetry.scrape(30, {0: reading(busy_s=10)})
    assert telemetry.visible(GPU_UTILISATION, 34)[0] == pytest.approx(90)
    telemetry.collect(40, {0: (9.0, 0.0)})
    assert telemetry.visible(GPU_UTILISATION, 49)[0] == pytest.approx(90)
    telemetry.scrape(45, {0: reading(busy_s=10)})
    assert telemetry.visible(GPU_UTILISATION, 49)[0] == pytest.approx(90)
    assert telemetry.visible(GPU_UTILISATION, 50)[0] == 0


def test_the_adapter_forgets_metrics_and_finds_them_at_its_next_look() -> None:
    telemetry = Telemetry(LIVE.model_copy(update={"relist_s": 60}), relist_phase_s=10)
    telemetry.scrape(15, {0: reading(3)})
    assert seen(telemetry, 20) == {0: 3}
    telemetry.vanish(30, 0)
    assert seen(telemetry, 140) == {}
    telemetry.scrape(150, {1: reading(7)})
    assert seen(telemetry, 189) == {}
    assert seen(telemetry, 190) == {1: 7}


def test_metrics_are_seen_late_and_ttft_over_the_last_minute() -> None:
    schedule = workload(rate_rps=10, duration_s=400).schedule()
    options = SchedulerOptions.of(ENGINE, latency())
    data = DataPlane(schedule, latency(), options, histograms=True)
    row = data.add()
    telemetry = Telemetry(Pipeline(gpu_exporter_s=0))
    for t_s in np.arange(15.0, 301.0, 15.0):
        data.advance(float(t_s), [row])
        telemetry.scrape(float(t_s), {0: data.read(row)}, [1])
        if t_s == 15:
            assert telemetry.visible(REQUESTS_WAITING, 19.9) == {}
    found = request_frame(data.requests)
    told = found[(found["first_token_s"] > 240) & (found["first_token_s"] <= 285)]
    assert telemetry.visible(TTFT_MEAN, 299.9)[0] == pytest.approx(told["ttft_s"].mean())
    true_s = np.percentile(found["ttft_s"][found["first_token_s"] <= 285], 99)
    bucket = min(edge for edge in BUCKETS_S["ttft"] if edge >= true_s)
    assert bucket / 2.5 <= telemetry.visible(TTFT_P99, 300)[0] <= bucket
    assert telemetry.visible(E2E_P99, 300)[0] > telemetry.visible(TTFT_P99, 300)[0]
    assert telemetry.visible(GPU_UTILISATION, 305)[1] == 0
    assert 0 < telemetry.visible(GPU_UTILISATION, 305)[0] <= 100
    with pytest.raises(InputError, match="not simulated"):
        telemetry.visible("nvidia.com/gpu", 300)


def test_every_signal_has_a_value_for_a_pod_that_serves() -> None:
    telemetry = Telemetry(LIVE)
    counts = np.array([5] + [0] * 22), np.array([5] + [0] * 21)
    for step in range(1, 30):
        histograms = {"ttft": counts[0] * step, "e2e": counts[1] * step}
        shown = Reading(0.0, 1, 1, 0.1, 5.0, 5.0, step, 5 * step, e2e_sum_s=step, finished=5 * step,
                        histograms=histograms)  # fmt: skip
        telemetry.scrape(15.0 * step, {7: shown})
    for name in SIGNALS:
        assert list(telemetry.visible(name, 436)) == [7], name
        assert telemetry.over_all(name, 436) == pytest.approx(telemetry.visible(name, 436)[7])
    assert telemetry.visible(TTFT_MEAN, 436)[7] == pytest.approx(0.2)
    assert telemetry.visible(KV_CACHE_USAGE, 436)[7] == 0.1


def test_a_lookback_shorter_than_a_scrape_is_refused() -> None:
    with pytest.raises(ValidationError, match="scrape_interval_s"):
        Pipeline(scrape_interval_s=600)


# -- alerts ---------------------------------------------------------------------------------------

BUSY = Alert("Busy", Compute(Aggregate("sum", Series("vllm:num_requests_running")), ">", 5),
             summary="", runbook="", for_s=60)  # fmt: skip


def fired(values: list[int], rule: Alert = BUSY) -> list[tuple[float, float]]:
    """What fires on a gauge that is scraped every 15 s from 0."""
    telemetry = Telemetry(LIVE)
    alerting = Alerting(telemetry, interval_s=15, phase_s=1, rules=(rule,))
    for step, value in enumerate(values):
        telemetry.scrape(15.0 * step, {0: reading(value)})
        alerting.catch_up(15.0 * step)
    found = alerting.fired(15.0 * len(values))
    return list(zip(found["started_at_s"], found["ended_at_s"], strict=True))


def test_an_alert_waits_for_its_time_and_ends_at_once() -> None:
    assert fired([9] * 4 + [0] * 4) == []
    assert fired([9] * 5 + [0] * 4) == [(61, 76)]
    assert fired([0] + [9] * 30) == [(76, 465)]
    assert fired([9] * 3 + [0] + [9] * 7 + [0]) == [(121, 166)]


@given(st.lists(st.sampled_from([0, 9]), min_size=1, max_size=60))
def test_alerts_do_not_depend_on_how_many_times_are_evaluated_together(values: list[int]) -> None:
    spans, since = [], None
    for step, value in enumerate([*values, 0]):
        at_s = 15.0 * step + 1
        if value and since is None:
            since = at_s
        elif not value and since is not None:
            if at_s - 15 - since >= 60:
                spans.append((since + 60, min(at_s, 15.0 * len(values))))
            since = None
    assert fired(values) == spans


def test_noise_is_what_no_request_noticed() -> None:
    names = {alert.name: alert.reach_s for alert in ALERTS}
    assert names["GpuUtilisationHigh"] == 300
    assert names["RequestVolumeFell"] == 600
    rows = [("GpuUtilisationHigh", 1000.0, 1100.0), ("GpuUtilisationHigh", 2000.0, 2100.0)]
    table = pd.DataFrame(rows, columns=["alert", "started_at_s", "ended_at_s"])
    arrived_s, over_s = np.array([690.0, 1690.0, 1800.0]), np.array([699.0, 1701.0, 1900.0])
    assert noise(table, arrived_s, over_s, np.array([True, True, False])) == [True, False]
    assert noise(table, arrived_s, over_s, np.array([True, False, False])) == [True, True]
    assert noise(table.iloc[:0], arrived_s, over_s, np.array([True, True, True])) == []
