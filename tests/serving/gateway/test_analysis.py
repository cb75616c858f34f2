"""The tests that a release is judged by: against scipy, their false alarms and their power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.gateway.analysis import Analysis, Served, fails_more, is_slower, judge

EDGES_S = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])


def served(latencies_s: np.ndarray, failed: int = 0) -> Served:
    buckets = np.bincount(np.searchsorted(EDGES_S, latencies_s), minlength=len(EDGES_S) + 1)
    return Served(len(latencies_s), failed, float(latencies_s.sum()), tuple(buckets.tolist()))


def counted(answered: int, failed: int) -> Served:
    """All in one bucket."""
    return Served(answered, failed, 0.03 * answered, (0, 0, answered, 0, 0, 0, 0))


@given(st.integers(0, 40), st.integers(0, 20), st.integers(1, 400), st.integers(0, 40))
def test_errors_are_judged_by_fishers_exact_test(
    answered: int, failed: int, old_answered: int, old_failed: int
) -> None:
    new, old = counted(answered, failed), counted(old_answered, old_failed)
    p = fails_more(new, old, 0.0)
    table = [[failed, answered], [old_failed, old_answered]]
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    higher = failed * (old_answered + old_failed) > old_failed * (answered + failed)
    assert p == pytest.approx(expected if higher else 1.0)


@given(st.data())
def test_errors_of_many_requests_too(data: st.DataObject) -> None:
    """Up to a million requests, where factorials do not fit: against the library's tail."""
    drawn, beside = (data.draw(st.integers(1000, 10**6)) for _ in range(2))
    failed = data.draw(st.integers(0, drawn // 2))
    old_failed = data.draw(st.integers(0, failed * beside // drawn))
    p = fails_more(counted(drawn - failed, failed), counted(beside - old_failed, old_failed), 0.0)
    total, marked = drawn + beside, failed + old_failed
    expected = float(stats.hypergeom.sf(failed - 1, total, marked, drawn))
    if failed * beside > old_failed * drawn:
        assert p == pytest.approx(expected, rel=1e-5, abs=1e-250)


@pytest.mark.parametrize("seed", range(40))
def test_latencies_are_judged_by_mann_whitney_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = rng.integers(2, 2000, 2)
    new_s, old_s = rng.lognormal(-3, 0.5, n), rng.lognormal(-3.3, 0.5, m)
    p = is_slower(served(new_s), served(old_s), 1.0)
    binned = (np.searchsorted(EDGES_S, values) for values in (new_s, old_s))
    expected = stats.mannwhitneyu(*binned, alternative="greater", method="asymptotic").pvalue
    assert p == pytest.approx(expected, rel=1e-9)


def test_a_difference_must_matter_as_well() -> None:
    """Of a million requests 0.1 % more failures are certain, and within what is allowed."""
    old, new = counted(1_000_000, 1000), counted(998_000, 2000)
    assert fails_more(new, old, 0.0) < 1e-9
    assert fails_more(new, old, 0.005) == 1
    slow, fast = served(np.full(10**6, 0.021)), served(np.full(10**6, 0.0199))
    assert is_slower(slow, fast, 1.0) < 1e-9
    assert is_slower(slow, fast, 1.1) == 1


def test_nothing_is_decided_by_nothing() -> None:
    none = Served(0, 0, 0.0, ())
    rule = Analysis()
    assert judge(none, counted(1000, 0), rule, 10) == "undecided"
    assert judge(counted(1000, 0), none, rule, 10) == "undecided"
    assert judge(counted(299, 0), counted(1000, 0), rule, 10) == "undecided"
    assert judge(counted(300, 0), counted(1000, 0), rule, 10) == "sound"
    assert judge(counted(0, 20), counted(1000, 0), rule, 10) == "worse"
    unseen = Served(400, 0, 0.0, (0, 0))
    assert judge(unseen, counted(1000, 0), rule, 10) == "undecided"
    assert judge(counted(400, 0), unseen, rule, 10) == "undecided"


def rollouts(error_share: float, slowdown: float, n: int) -> float:
    """The share of rollouts of one step with 20 looks that are found worse."""
    rule = Analysis(max_error_increase=0.0, max_slowdown=1.0, min_requests=50)
    looks, worse = 20, 0
    for seed in range(n):
        rng = np.random.default_rng([seed, int(1000 * error_share), int(100 * slowdown)])
        new_s = rng.lognormal(-3, 0.6, 400) * slowdown
        old_s = rng.lognormal(-3, 0.6, 4000)
        new_failed = np.cumsum(rng.random(400) < error_share)
        old_failed = np.cumsum(rng.random(4000) < 0.01)
        worse += any(
            judge(
                served(new_s[: 20 * k], int(new_failed[20 * k - 1])),
                served(old_s[: 200 * k], int(old_failed[200 * k - 1])),
                rule,
                looks,
            )
            == "worse"
            for k in range(1, looks + 1)
        )
    return worse / n


def test_a_sound_version_is_rarely_rolled_back_however_often_one_looks() -> None:
    """No effect is asked for here, so that only the tests guard; 5 % and three standard errors."""
    assert rollouts(0.01, 1.0, 200) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize(("error_share", "slowdown"), [(0.06, 1.0), (0.01, 1.3)])
def test_a_worse_version_is_found(error_share: float, slowdown: float) -> None:
    assert rollouts(error_share, slowdown, 40) > 0.9
