"""Whoever runs the trials, the search finds the same, and goes on where one of them dies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import psutil
import pytest

from serving.errors import InfeasibleError, InputError
from serving.hpa import REQUESTS_RUNNING, HpaSpec, pods_metric
from serving.plan import Plan
from simulations.fleet import Cluster
from simulations.result import SimResult
from tests.workbench.tune import stub
from tests.workbench.tune.stub import search
from workbench.tune import Tuning
from workbench.tune.evaluate import Job, failed
from workbench.tune.workers import workers


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A real cluster of two nodes with a CPU each."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("ray.cluster_utils")
    cluster = two_nodes(attempts=3)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def two_nodes(attempts: int) -> Any:
    """Ray gives its agents 15 s to start, which is not enough on a machine that is busy and cold."""
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False)
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
        return two_nodes(attempts - 1)
    return cluster


def jobs(simulate: Any, spares: tuple[int, ...]) -> list[Job]:
    """One per fleet, with so many warm spares."""
    latency = stub.candidate("parent").latency
    plan = Plan(
        name="tuned",
        variant=stub.candidate("parent").variant,
        engine=stub.ENGINE,
        slo=stub.SLO,
        hpa=HpaSpec(max_replicas=9, metrics=(pods_metric(REQUESTS_RUNNING, 4),)),
    )
    return [
        Job(
            plan.model_copy(update={"warm_spares": count}),
            stub.WORKLOAD,
            latency,
            (0,),
            Cluster(),
            simulate,
        )
        for count in spares
    ]


# -- the same, whoever runs them -------------------------------------------------------------------


def assert_same(one: Tuning, other: Tuning) -> None:
    pd.testing.assert_frame_equal(one.trials, other.trials)
    pd.testing.assert_frame_equal(one.neighbours, other.neighbours)
    pd.testing.assert_frame_equal(one.baselines, other.baselines)
    assert one.winner == other.winner
    assert one.winner_result.metrics == other.winner_result.metrics


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_result_does_not_depend_on_the_number_of_processes(
    sampler: Any, tmp_path: Path
) -> None:
    alone, two = (search(tmp_path / str(n), sampler=sampler, n_jobs=n) for n in (1, 2))
    assert_same(alone, two)
    assert alone.trials["gpu_hours"].nunique() > 8, "trials differ, so that their order matters"


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_result_on_a_ray_cluster_is_that_of_one_process(
    sampler: Any, tmp_path: Path, ray_address: str
) -> None:
    alone = search(tmp_path / "alone", sampler=sampler)
    assert_same(alone, search(tmp_path / "ray", sampler=sampler, ray=ray_address))


@pytest.mark.slow
def test_both_nodes_of_a_ray_cluster_run_trials(ray_address: str, tmp_path: Path) -> None:
    with workers(ray=ray_address) as run:
        scores = list(run(jobs(partial(stub.telling_where, tmp_path), (0, 2, 3))))
    assert [score.error for score in scores] == [""] * 3
    assert len({score.hours for score in scores}) == 2


def test_scores_come_in_the_order_of_the_jobs() -> None:
    known = failed("already known")
    asked = jobs(stub.simulate, (0, 3, 2, 5))
    with workers() as run:
        alone = list(run([asked[0], known, *asked[1:]]))
    with workers(2) as run:
        two = list(run([asked[0], known, *asked[1:]]))
        again = list(run(asked))
    assert two == alone
    assert again == [score for score in alone if score != known]
    assert len({score.hours for score in again}) == 4


# -- one that dies -------------------------------------------------------------------------------


def test_a_process_that_is_killed_is_a_failed_trial(tmp_path: Path) -> None:
    found = search(tmp_path, simulate=stub.killing, n_jobs=2, sampler="random")
    check_killed(found, r"ended with signal SIGKILL")


@pytest.mark.slow
def test_a_ray_task_that_is_killed_is_a_failed_trial(tmp_path: Path, ray_address: str) -> None:
    found = search(tmp_path, simulate=stub.killing, ray=ray_address, sampler="random")
    check_killed(found, r"the Ray task ended: ")


def check_killed(found: Tuning, why: str) -> None:
    table = found.trials
    killed = table["warm_spares"] == 1
    assert 0 < killed.sum() < len(table) == 16
    assert table.loc[killed, "state"].eq("FAIL").all()
    assert table.loc[killed, "error"].str.contains(why).all()
    assert table.loc[~killed, "state"].eq("COMPLETE").all()
    assert found.winner_result.keeps_slo
    assert found.winner.warm_spares != 1
    spares = found.neighbours[found.neighbours["parameter"] == "warm_spares"]
    assert spares.loc[spares["value"] == 1, "breaks"].str.contains(why).all()


def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_replaced() -> None:
    asked = jobs(stub.simulate, (0, 2, 3))
    with workers(2) as run:
        first = list(run(asked))
        children = [c for c in psutil.Process().children() if "workbench.apart" in str(c.cmdline())]
        assert len(children) == 2
        for child in children:
            child.kill()
            child.wait()
        assert list(run(asked)) == first
    assert not any(score.error for score in first)


def test_what_no_other_process_can_be_told_fails_with_the_reason(tmp_path: Path) -> None:
    def local(*args: Any, **kwargs: Any) -> SimResult:
        return stub.simulate(*args, **kwargs)

    with pytest.raises(InfeasibleError, match=r"all 6 trials failed.*no other process can be told"):
        search(tmp_path, trials=6, simulate=local, n_jobs=2)


# -- no cluster ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no.such.host.invalid:6379", "nonsense"])
def test_an_address_without_a_cluster_is_refused_in_one_line(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray").shutdown()
    with pytest.raises(InputError, match="no cluster answers there") as raised:
        search(tmp_path, ray=address)
    assert address in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "study.db").exists()


def test_a_server_that_is_not_ray_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray").shutdown()
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="no cluster answers there"):
            search(tmp_path, ray=f"127.0.0.1:{server.server_port}")
        server.shutdown()
