"""What a trial is worth: worst seeds, lost requests, and when further seeds are saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import Plan, Slo
from serving.values import Estimate
from simulations.fleet import Cluster
from simulations.promise import broken
from simulations.result import SimResult
from tests.workbench.tune import stub
from workbench.tune.evaluate import Job, over_limits, score
from workbench.tune.search import _made

SEEDS = (0, 1, 2)
PLAN = Plan(
    name="tuned",
    variant=stub.candidate("parent").variant,
    engine=stub.ENGINE,
    slo=stub.SLO,
    hpa=HpaSpec(max_replicas=9, metrics=(pods_metric(REQUESTS_RUNNING, 4),)),
)


def twin(ttft_s: Sequence[float], hours: Sequence[float], **shares: float) -> Any:
    """A twin that says these numbers by seed, and remembers which seeds it was asked for."""
    asked: list[int] = []

    def simulate(plan: Plan, *args: Any, seeds: Sequence[int], **kwargs: Any) -> SimResult:
        (seed,) = seeds
        asked.append(seed)
        row = {"ttft_p99_s": ttft_s[seed], "gpu_hours": hours[seed], **shares}
        metrics = {name: Estimate(value=v, low=v, high=v, n=1) for name, v in row.items()}
        result = stub.simulate(plan, *args, seeds=seeds, **kwargs)
        return SimResult(**(vars(result) | {"metrics": metrics}))

    simulate.asked = asked  # type: ignore[attr-defined]
    return simulate


def job(simulate: Any, **changes: Any) -> Job:
    latency = stub.candidate("parent").latency
    return Job(PLAN, stub.WORKLOAD, latency, SEEDS, Cluster(), simulate, **changes)


@pytest.mark.parametrize(
    ("ttft_s", "hours", "incumbent", "stopped", "seeds_run"),
    [
        ((0.4, 0.4, 0.4), (90, 90, 90), (), "", 3),
        ((0.8, 0.4, 0.4), (90, 90, 90), (), "breaks the SLO", 1),
        ((0.6, 0.4, 0.4), (90, 90, 90), (), "", 3),
        ((0.4, 0.4, 0.4), (130, 90, 90), (100, 100, 100), "costs more", 1),
        ((0.4, 0.4, 0.4), (110, 110.1, 110), (100, 100, 100), "costs more", 2),
        ((0.4, 0.4, 0.4), (110, 95, 90), (100, 100, 100), "", 3),
        # Pairs, not totals: seeds differ by more than the plans do.
        ((0.4, 0.4, 0.4), (110, 220.1, 330), (100, 200, 300), "costs more", 2),
        ((0.4, 0.4, 0.4), (99, 198, 297), (100, 200, 300), "", 3),
    ],
)
def test_a_trial_ends_where_it_is_settled(
    ttft_s: Sequence[float],
    hours: Sequence[float],
    incumbent: tuple[float, ...],
    stopped: str,
    seeds_run: int,
) -> None:
    simulate = twin(ttft_s, hours)
    found = score(job(simulate, incumbent=incumbent))
    assert (found.stopped, simulate.asked) == (stopped, list(SEEDS[:seeds_run]))
    assert found.hours == tuple(hours[:seeds_run])
    whole = score(job(twin(ttft_s, hours), incumbent=incumbent, race=False))
    assert len(whole.hours) == 3
    assert not whole.stopped


def test_the_worst_seed_counts_and_so_do_requests_that_were_lost() -> None:
    slo = Slo(ttft_p99_s=0.5, max_error_share=0.02)
    rows = [{"ttft_p99_s": 0.4, "failed": 0.01}, {"ttft_p99_s": 0.6, "rejected": 0.03}]
    over = over_limits(rows, slo)
    assert over == pytest.approx({"ttft_p99_s": 0.2, "error_share": 0.5, "timeout_share": -1})
    quick = score(job(twin((0.1,) * 3, (1,) * 3, aborted=0.012)))
    assert not quick.keeps_slo
    assert score(job(twin((0.1,) * 3, (1,) * 3, aborted=0.009))).keeps_slo


def test_a_result_that_loses_requests_does_not_keep_the_slo() -> None:
    """The twin judges by the same limits as the search."""
    row = {"ttft_p99_s": 0.1, "failed": 0.006, "unfinished": 0.006}
    metrics = {name: Estimate(value=v, low=v, high=v, n=1) for name, v in row.items()}
    assert broken(metrics, stub.SLO) == pytest.approx({"error_share": 0.012})
    loose = Slo(ttft_p99_s=0.5, max_error_share=0.02)
    assert not broken(metrics, loose)
    for slo in (stub.SLO, loose):
        over = over_limits([row], slo)
        assert {name for name, by in over.items() if by > 0} == set(broken(metrics, slo))


def test_what_raises_has_failed() -> None:
    def raising(*args: Any, **kwargs: Any) -> SimResult:
        raise MemoryError("none left")

    found = score(job(raising))
    assert (found.error, found.keeps_slo, found.hours) == ("MemoryError: none left", False, ())

    def no_plan(*args: Any) -> Job:
        Slo(ttft_p99_s=-1)
        raise AssertionError

    made = _made(no_plan, {}, ())
    assert not isinstance(made, Job)
    assert "ttft_p99_s(=-1)" in made.error
    with pytest.raises(ValidationError):
        no_plan()
