"""Commands that measure, against a server whose times are known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.client import dummy_server
from experiments import __file__ as experiments_file
from serving.errors import InputError
from serving.plan import Variant
from simulations.traffic import ClosedLoop, LogNormal, Uniform
from workbench.cli.loads import Target, workload_of
from workbench.model import shipped_checkpoint
from workbench.track import list_runs

H100 = Path(experiments_file).parent / "results" / "h100"


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """Servers that send a token every 10 ms, and every 20 ms."""
    with dummy_server(0.01) as fast, dummy_server(0.02) as slow:
        yield fast, slow


def workbench(*arguments: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments, "--workdir", str(workdir)],
        capture_output=True,
        text=True,
        timeout=200,
    )


LOAD = ("--output-tokens", "11", "--duration-s", "4", "--warmup-s", "0.5")


def test_load_measures_a_server_that_runs(urls: tuple[str, str], tmp_path: Path) -> None:
    command = ("load", "--url", urls[0], "--rate", "20", "--ttft-p99", "0.5", "--json", *LOAD)
    done = workbench(*command, workdir=tmp_path)
    for _ in range(2):
        if done.returncode and "the machine is busy" in done.stdout:
            done = workbench(*command, workdir=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(done.stdout)
    assert row["invalid"] == ""
    assert row["tpot_p50_s"] == pytest.approx(0.01, rel=0.1)
    assert row["slo_attainment"] == 1
    assert (tmp_path / "loads" / "model-server-rate20" / "measurement.json").exists()
    runs = list_runs(tmp_path)
    assert set(runs["name"]) == {"model-server-rate20"}
    assert float(runs["tpot_p50_s"][0]) == pytest.approx(row["tpot_p50_s"], rel=1e-4)


def test_a_load_that_cannot_be_trusted_says_why(urls: tuple[str, str], tmp_path: Path) -> None:
    done = workbench("load", "--url", urls[0], "--rate", "2", *LOAD, workdir=tmp_path)
    assert done.returncode == 1
    assert "cannot be trusted: " in done.stderr
    assert "requests are too few" in done.stderr
    assert "ttft_from_schedule_mean_s" in done.stdout


def test_compare_gives_the_ratio_of_two_servers(urls: tuple[str, str], tmp_path: Path) -> None:
    command = ("compare", "--url", urls[0], "--b-url", urls[1], "--concurrency", "5", *LOAD)
    done = workbench(*command, "--narrow", "0.2", "--json", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    rows: dict[str, Any] = {row["metric"]: row for row in json.loads(done.stdout)}
    assert rows["tpot_p50_s"]["ratio"] == pytest.approx(2, rel=0.1)
    assert rows["tpot_p50_s"]["verdict"] == "b is higher"
    assert rows["output_tokens_per_s"]["verdict"] == "b is lower"
    runs = list_runs(tmp_path)
    measured = 2 * int(rows["tpot_p50_s"]["repeats"])
    assert measured >= 12
    assert sorted(runs["stage"]) == ["compare"] + measured * ["measure"]
    (parent,) = runs[runs["stage"] == "compare"].to_dict("records")
    assert parent["ratio/tpot_p50_s"] == pytest.approx(rows["tpot_p50_s"]["ratio"], rel=1e-4)


def test_capacity_of_a_server(urls: tuple[str, str], tmp_path: Path) -> None:
    """The server computes nothing: any rate is kept, and the search ends where it may no further."""
    command = ("capacity", "--url", urls[0], "--e2e-p99", "0.3", "--start-rps", "20", *LOAD)
    done = workbench(*command, "--max-runs", "2", "--attainment", "0.9", "--json", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rate_rps"], found["low_rps"], found["high_rps"]) == (40.0, 40.0, None)
    assert [row["rate_rps"] for row in found["runs"]] == [20.0, 40.0]
    runs = list_runs(tmp_path)
    (parent,) = runs[runs["stage"] == "capacity"].to_dict("records")
    assert parent["capacity_rps"] == 40


def test_capacity_below_which_nothing_is_kept(urls: tuple[str, str], tmp_path: Path) -> None:
    command = ("capacity", "--url", urls[0], "--e2e-p99", "0.01", "--start-rps", "20", *LOAD)
    done = workbench(*command, "--attainment", "0.9", workdir=tmp_path)
    assert done.returncode == 2
    assert "the SLO is broken even at" in done.stderr


def test_what_a_store_could_not_take_is_logged_later(
    urls: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    command = ("capacity", "--url", urls[0], "--e2e-p99", "0.3", "--start-rps", "20", *LOAD)
    done = workbench(*command, "--max-runs", "1", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "workbench log" in done.stderr
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert workbench("log", workdir=tmp_path).returncode == 0
    assert sorted(list_runs(tmp_path)["stage"]) == ["capacity", "measure"]


def test_b_is_a_but_for_what_is_said(tmp_path: Path) -> None:
    model = str(shipped_checkpoint())
    a = Target.of(tmp_path, model=model, engine='{"max_num_seqs": 16}')
    b = Target.of(
        tmp_path, model=model, engine='{"max_num_batched_tokens": 512}', like=a.engine_args
    )
    assert b.variant == a.variant
    assert b.engine_args == a.engine_args.model_copy(update={"max_num_batched_tokens": 512})


def test_a_compressed_variant_is_found_by_name(tmp_path: Path) -> None:
    made = Variant(name="int8", model=str(shipped_checkpoint()), method="int8")
    made.write(tmp_path / "compress" / "int8" / "card.json")
    assert Target.of(tmp_path, variant="int8").variant == made
    with pytest.raises(InputError, match=r"--variant\(='int4'\).*\['int8'\]"):
        Target.of(tmp_path, variant="int4")
    with pytest.raises(InputError, match="exclude each other"):
        Target.of(tmp_path, variant="int8", model="x")


def test_a_closed_loop_has_no_rate_and_no_warm_up() -> None:
    found = workload_of(concurrency=4, requests=12, prompt_tokens="16-32", output_tokens="8:16:64")
    assert found.arrivals == ClosedLoop(concurrency=4, requests=12)
    assert (found.warmup_s, found.prompt_tokens) == (0.0, Uniform(min_tokens=16, max_tokens=32))
    assert found.output_tokens == LogNormal(median_tokens=8, mean_tokens=16, max_tokens=64)
    with pytest.raises(InputError, match="exclude each other"):
        workload_of(trace=Path("a.csv"), rate=3)


def test_loads_are_measured_for_a_comparison_elsewhere(
    urls: tuple[str, str], tmp_path: Path
) -> None:
    known = json.loads((H100 / "fidelity" / "fidelity.json").read_text())["latency"]
    (tmp_path / "h100.json").write_text(json.dumps(known))
    command = ("fidelity", "--url", urls[0], "--latency", str(tmp_path / "h100.json"))
    loads = ("--capacity-rps", "20", "--shares", "0.5", "--repeats", "2", "--duration-s", "3")
    options = (*command, *loads, "--least-requests", "20", "--warmup-s", "0.5", "--force")
    stopped = workbench(*options, "--measure-only", "--time-limit-s", "1", workdir=tmp_path)
    assert stopped.returncode == 2
    assert "time limit came after 0 of 2 runs" in stopped.stderr
    measured = workbench(*options, "--measure-only", "--json", workdir=tmp_path)
    assert measured.returncode == 0, measured.stderr
    assert [run["load"] for run in json.loads(measured.stdout)] == ["50%", "50%"]
    folder = tmp_path / "fidelity" / "demo"
    assert not (folder / "fidelity.json").exists()
    again = ("fidelity", "--compare", str(folder), *command[3:], "--force", "--json")
    compared = workbench(*again, workdir=tmp_path)
    assert compared.returncode == 0, compared.stderr
    cells = {cell["metric"]: cell for cell in json.loads(compared.stdout)}
    assert cells["tpot_p50_s"]["measured"] == pytest.approx(0.01, rel=0.1)
    assert cells["tpot_p50_s"]["repeats"] == 2
