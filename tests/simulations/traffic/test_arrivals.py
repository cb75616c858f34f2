"""Rates, burstiness and dispersion of what is drawn, against what was asked for.

Seeds are fixed; where a bound is statistical it lies four standard errors away, so that a right draw
would miss it with one seed in 16,000.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats

from serving.errors import InputError
from simulations.profiles import DAY_S, PROFILES
from simulations.traffic import (
    Arrivals,
    Constant,
    Day,
    Gamma,
    Poisson,
    Ramp,
    Rates,
    Spike,
    Superposed,
    Trace,
    Week,
    Workload,
)
from simulations.traffic.renewals import Process, renewals

ARRIVALS: TypeAdapter[Any] = TypeAdapter(Arrivals)
ERRORS = 4.0


def drawn(process: Process, duration_s: float, seed: int = 0, **more: Any) -> np.ndarray[Any, Any]:
    times = process.times(duration_s, np.random.default_rng(seed), **more)
    assert (np.diff(times) >= 0).all()
    assert len(times) == 0 or (times[0] >= 0 and times[-1] < duration_s)
    return times


def cv(times: np.ndarray[Any, Any]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("burstiness", [4.0, 1.0, 0.25, 0.05])
def test_gaps_have_their_variation_and_counts_their_dispersion(burstiness: float) -> None:
    """CV^2 = 1 / burstiness, and over long windows the index of dispersion is the same."""
    n, windows = 1_000_000, 4_000
    times = drawn(Gamma(rate_rps=5, burstiness=burstiness), n / 5)
    squared, kurtosis = 1 / burstiness, 3 + 6 / burstiness
    assert len(times) == pytest.approx(n, abs=ERRORS * np.sqrt(squared * n))
    error = np.sqrt((kurtosis - 1) / n) / 2
    assert cv(times) == pytest.approx(np.sqrt(squared), rel=ERRORS * error + 1e-3)
    counts = np.bincount((times / (n / 5) * windows).astype(int), minlength=windows)
    per_window = n / windows
    # Cox, Renewal Theory (1962), section 4.5: of a stationary process, to the constant term.
    variance = squared * per_window + (1 - squared**2) / 6
    error = np.sqrt(2 / windows) + squared**2 / per_window / 4
    assert counts.var() == pytest.approx(variance, rel=ERRORS * error)


@pytest.mark.parametrize("shape", [0.02, 0.3, 5.0])
def test_a_process_is_found_running(shape: float) -> None:
    """In a short window as many are expected as its length says; begun afresh it would be more."""
    counts = np.array([len(renewals(3.0, shape, np.random.default_rng(s))) for s in range(20_000)])
    error = counts.std() / np.sqrt(len(counts))
    assert counts.mean() == pytest.approx(3.0, abs=ERRORS * error)
    assert error < 0.15


def test_a_clock_is_even() -> None:
    assert drawn(Constant(rate_rps=4), 2.0).tolist() == [i / 4 for i in range(8)]


@pytest.mark.parametrize(
    "process",
    [
        Ramp(start_rps=2, end_rps=40, burstiness=0.25),
        Day(peak_rps=40, burstiness=0.25),
        Week(peak_rps=40, days=2, burstiness=0.25),
    ],
)
def test_where_the_rate_changes_the_burstiness_stays(process: Process) -> None:
    """In operational time the gaps of every part have a CV of 2."""
    times = drawn(process, 86_400)
    grid_s, rate_rps = process.rates(86_400)
    expected = np.concatenate(
        [[0], np.cumsum((rate_rps[1:] + rate_rps[:-1]) / 2 * np.diff(grid_s))]
    )
    inner = np.interp(times, grid_s, expected)
    assert len(times) == pytest.approx(expected[-1], abs=ERRORS * 2 * np.sqrt(expected[-1]))
    for part in np.array_split(inner, 8):
        error = np.sqrt(26 / len(part)) / 2
        assert cv(part) == pytest.approx(2, rel=ERRORS * error)
        assert error < 0.015


@pytest.mark.parametrize("name", ["servegen-deepseek-r1", "servegen-deepseek-r1-10min"])
def test_a_day_follows_its_profile(name: str) -> None:
    """Poisson counts of the profile's steps are as far from its rates as chi-squared allows."""
    day = Day(profile=name, peak_rps=20, burstiness=1.0)
    steps = len(PROFILES[name].rates)
    counts = np.bincount((drawn(day, DAY_S) / DAY_S * steps).astype(int), minlength=steps)
    grid_s = np.linspace(0, DAY_S, 24 * 60 * 6 + 1)
    rate = day.rate_rps(grid_s, DAY_S)
    mass = (rate[1:] + rate[:-1]) / 2 * np.diff(grid_s)
    expected = mass.reshape(steps, -1).sum(axis=1)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 1e-4 < stats.chi2.sf(statistic, steps) < 1 - 1e-4
    assert rate.max() == pytest.approx(20, rel=1e-3)
    published = np.asarray(PROFILES[name].rates)
    # Linear between the middles of the steps: the shape is smoothed a little, and no more.
    assert np.corrcoef(expected, published)[0, 1] > 0.95
    assert expected.sum() / 20 == pytest.approx(
        published.mean() / published.max() * DAY_S, rel=0.01
    )


def test_a_day_played_faster_keeps_its_shape_and_its_rate() -> None:
    fast, whole = (Day(peak_rps=30).rate_rps(np.array([0.3, 0.7]) * d, d) for d in (3600.0, DAY_S))
    np.testing.assert_allclose(fast, whole)


def test_a_week_is_its_days_one_after_the_other_and_begins_again() -> None:
    week = Week(profile="azure-code-week-2024", first_day=5, days=9, peak_rps=10)
    assert week.span_s == 9 * DAY_S
    rates = PROFILES["azure-code-week-2024"].rates
    middles_s = (np.arange(9 * 24) + 0.5) * 3600
    played = week.rate_rps(middles_s, week.span_s)
    wanted = np.roll(rates, -5 * 24)
    wanted = np.concatenate([wanted, wanted[: 2 * 24]])
    np.testing.assert_allclose(played, wanted / wanted.max() * 10)
    # A weekend of the coding service: the quietest day has less than half of the busiest.
    days = played.reshape(9, 24).sum(axis=1)
    assert days.min() < 0.5 * days.max()


def test_a_profile_of_several_days_gives_each_of_them() -> None:
    day = Day(profile="servegen-m-large", day=3, peak_rps=7)
    rates = np.array(PROFILES["servegen-m-large"].days[3])
    found = day.rate_rps((np.arange(24) + 0.5) * 3600, DAY_S)
    np.testing.assert_allclose(found, rates / rates.max() * 7)


@pytest.mark.parametrize(
    "process",
    [
        Poisson(rate_rps=20),
        Gamma(rate_rps=20, burstiness=0.5),
        Ramp(start_rps=5, end_rps=35),
        Superposed(parts=(Poisson(rate_rps=12), Gamma(rate_rps=8, burstiness=0.5))),
    ],
)
def test_a_spike_multiplies_the_rate_while_it_lasts(process: Process) -> None:
    spike = Spike(at_s=4_000, height=3, length_s=1_000)
    with_it, without = (drawn(process, 10_000, spikes=s) for s in ((spike,), ()))
    for begin_s, end_s, factor in ((0, 4_000, 1), (4_000, 5_000, 3), (5_000, 10_000, 1)):
        counts = [((t >= begin_s) & (t < end_s)).sum() for t in (with_it, without)]
        error = np.sqrt(2 * (counts[0] + factor**2 * counts[1]))
        assert counts[0] == pytest.approx(factor * counts[1], abs=ERRORS * error)


def test_inside_a_spike_the_gaps_are_as_bursty() -> None:
    times = drawn(
        Gamma(rate_rps=20, burstiness=0.25),
        20_000,
        spikes=(Spike(at_s=5_000, height=5, length_s=10_000),),
    )
    inside = times[(times > 5_000) & (times < 15_000)]
    assert len(inside) == pytest.approx(1_000_000, abs=ERRORS * 2 * 1_000)
    assert cv(inside) == pytest.approx(2, rel=ERRORS * np.sqrt(26 / len(inside)) / 2)


def test_spikes_that_overlap_add_their_excess() -> None:
    spikes = (Spike(at_s=100, height=2, length_s=100), Spike(at_s=150, height=3, length_s=100))
    times = drawn(Constant(rate_rps=10), 400, spikes=spikes)
    counts = np.histogram(times, [0, 100, 150, 200, 250, 400])[0]
    np.testing.assert_allclose(counts, [1000, 1000, 2000, 1500, 1500], atol=1)


def test_parts_of_a_superposition_do_not_know_of_each_other() -> None:
    parts = (Poisson(rate_rps=3), Gamma(rate_rps=5, burstiness=0.1))
    both = Superposed(parts=parts)
    times = drawn(both, 5_000)
    other = drawn(Superposed(parts=(parts[0], Gamma(rate_rps=9, burstiness=0.1))), 5_000)
    mine = drawn(parts[0], 5_000, 0)
    kept = np.intersect1d(times, other)  # the part that is in both, time for time
    assert len(kept) == pytest.approx(len(mine), abs=ERRORS * np.sqrt(2 * 15_000))
    grid_s, rate_rps = both.rates(5_000)
    np.testing.assert_allclose(rate_rps, 8)
    assert grid_s[-1] == 5_000


def test_many_bursty_clients_look_poisson_close_up_and_bursty_from_afar() -> None:
    """Whitt, Operations Research 30 (1982): counts of long windows keep the mean of CV^2."""
    clients = Superposed(parts=tuple(Gamma(rate_rps=1, burstiness=0.25) for _ in range(50)))
    times = drawn(clients, 40_000)
    assert 1 < cv(times) < 1.4  # of each client it is 2
    counts = np.bincount((times // 40).astype(int), minlength=1_000)
    assert counts.var() / counts.mean() == pytest.approx(4, rel=ERRORS * np.sqrt(2 / 1_000))


@pytest.mark.parametrize(
    "process",
    [
        Poisson(rate_rps=2),
        Gamma(rate_rps=2, burstiness=0.3),
        Ramp(start_rps=1, end_rps=4, burstiness=0.3),
        Day(peak_rps=4),
        Superposed(parts=(Poisson(rate_rps=1), Week(peak_rps=3))),
    ],
)
def test_scaled_is_more_and_as_bursty(process: Process) -> None:
    more = process.scaled(2.5)
    for (_, before), (_, after) in zip([process.rates(600.0)], [more.rates(600.0)], strict=True):
        np.testing.assert_allclose(after, 2.5 * before)
    assert more.gap_shape == process.gap_shape


def rates_file(folder: Path, text: str) -> Path:
    path = folder / "rates.csv"
    path.write_text(text)
    return path


def test_a_users_rates_are_read_from_their_file(tmp_path: Path) -> None:
    path = rates_file(tmp_path, "t_s,rps\n100,0\n1100,20\n2100,20\n")
    rates = Rates.of(path, burstiness=0.5)
    assert rates.span_s == 2_000
    times = drawn(rates, 2_000)
    counts = [(times < 1_000).sum(), (times >= 1_000).sum()]
    np.testing.assert_allclose(counts, [10_000, 20_000], atol=ERRORS * np.sqrt(2 * 20_000))
    assert rates.scaled(3).scaled(2).table()[1].tolist() == [0, 120, 120]
    load = Workload.model_validate(
        {
            "arrivals": rates.model_dump(),
            "prompt_tokens": {"kind": "fixed", "tokens": 5},
            "output_tokens": {"kind": "fixed", "tokens": 5},
            "duration_s": 500.0,
        }
    )
    assert len(load.schedule()) == pytest.approx(2_500, abs=ERRORS * np.sqrt(2 * 2_500))
    path.write_text("t_s,rps\n0,1\n9,1\n")
    with pytest.raises(InputError, match="another file"):
        rates.table()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("t_s,rps\n0,1\n60,-2\n", r"line 3: .*rps\(=-2\)"),
        ("t_s,rps\n0,1\n60,nan\n", r"line 3: .*rps\(=nan\)"),
        ("t_s,rps\n0,1\n60,inf\n", r"line 3: .*rps\(=inf\)"),
        ("t_s,rps\n0,1\n60,2\n30,2\n", r"line 4: t_s\(=30\) must grow"),
        ("t_s,rps\n0,1\n0,2\n", r"line 3: t_s\(=0\) must grow"),
        ("t_s,rps\n0,1\n", "no two rows"),
        ("time,rate\n0,1\n1,1\n", "no two rows of t_s and rps"),
        ("t_s,rps\n0,0\n60,0\n", "asks for nothing"),
        ("", "is no CSV file"),
    ],
)
def test_rates_that_cannot_be_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        Rates.of(rates_file(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_no_more_is_asked_of_a_file_than_it_holds(tmp_path: Path) -> None:
    rates = Rates.of(rates_file(tmp_path, "t_s,rps\n0,1\n60,1\n"))
    with pytest.raises(InputError, match=r"duration_s\(=61\) is longer than the rates"):
        rates.times(61.0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "poisson", "rate_rps": -1}, "greater than 0"),
        ({"kind": "poisson", "rate_rps": float("nan")}, "finite number"),
        ({"kind": "gamma", "rate_rps": float("inf"), "burstiness": 1}, "finite number"),
        ({"kind": "day", "peak_rps": 1, "profile": "x"}, r"profile\(='x'\) must be one of"),
        ({"kind": "day", "peak_rps": 1, "day": 1}, r"day\(=1\) must be < 1"),
        ({"kind": "day", "peak_rps": 1, "profile": "microsoft365-a"}, "was not published"),
        ({"kind": "superposed", "parts": []}, "at least 1"),
        ({"kind": "superposed", "parts": [{"kind": "closed"}]}, "does not match"),
    ],
)
def test_arrivals_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ARRIVALS.validate_python(wrong)


def test_more_requests_than_can_be_numbered_are_refused() -> None:
    with pytest.raises(InputError, match="requests are expected"):
        Poisson(rate_rps=1e9).times(1e6, np.random.default_rng(0))


def bursty_trace(n: int = 400_000) -> Trace:
    """CV 3, at a rate that doubles half-way."""
    gaps = np.random.default_rng(0).gamma(1 / 9, 9, n)
    at_s = np.cumsum(gaps * np.where(np.arange(n) < n // 3, 0.2, 0.1))
    return Trace(at_s - at_s[0], np.arange(n), np.ones(n, dtype=np.int64))


def test_a_share_of_a_trace_is_as_bursty_and_follows_its_rate() -> None:
    """Chosen one by one, a quarter would have CV^2 = 9 / 4 + 3 / 4: a CV of 1.73."""
    trace = bursty_trace()
    quarter = trace.kept(0.25, np.random.default_rng(1))
    assert len(quarter) == pytest.approx(len(trace) / 4, rel=0.03)
    assert (np.diff(quarter.arrived_at_s) >= 0).all()
    half_s = trace.arrived_at_s[len(trace) // 3]

    def parts(of: Trace) -> list[np.ndarray[Any, Any]]:
        at_s = of.arrived_at_s
        return [at_s[at_s < half_s], at_s[at_s >= half_s]]

    for whole, kept in zip(parts(trace), parts(quarter), strict=True):
        assert len(kept) / len(whole) == pytest.approx(0.25, abs=0.015)
        assert cv(kept) == pytest.approx(cv(whole), rel=0.05)
        assert cv(kept) > 2.8
    # The order and the rows are the trace's own.
    assert (np.diff(quarter.prompt_tokens) > 0).all()
    one_by_one = trace.arrived_at_s[np.random.default_rng(2).random(len(trace)) < 0.25]
    assert cv(one_by_one[one_by_one < half_s]) == pytest.approx(np.sqrt(3), rel=0.05)


def test_a_share_that_keeps_nothing_is_refused() -> None:
    trace = Trace(np.array([0.0, 500.0]), np.ones(2, dtype=int), np.ones(2, dtype=int))
    with pytest.raises(InputError, match="keeps none of its 2 requests"):
        trace.kept(1e-9, np.random.default_rng(0))


def test_what_was_written_before_can_still_be_read() -> None:
    old = (
        '{"arrivals":{"kind":"day","profile":"azure-code-2024","peak_rps":3.0,"burstiness":null},'
        '"prompt_tokens":{"kind":"fixed","tokens":8},"output_tokens":{"kind":"fixed","tokens":8},'
        '"duration_s":60.0,"warmup_s":0.0,"shared_prefix":null,"sessions":null,"seed":3}'
    )
    load = Workload.model_validate_json(old)
    assert isinstance(load.arrivals, Day)
    assert load.arrivals.gap_shape == PROFILES["azure-code-2024"].burstiness
    assert Workload.model_validate_json(load.model_dump_json()) == load
