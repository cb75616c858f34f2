"""The whole pipeline with reduced sizes, on real vLLM, from the installed wheel as a user has it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.conftest import without_checkout

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]


@pytest.fixture(scope="session")
def demo(programs: Path) -> list[str]:
    return [str(programs / "workbench"), "demo", "--quick"]


def vllm_processes() -> set[int]:
    """Processes of vLLM whose ancestor this test is, or whose ancestor is gone."""
    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "name"]):
        text = " ".join(process.info["cmdline"] or [process.info["name"] or ""])
        if "vllm.entrypoints" in text or text.startswith("VLLM::"):
            found.add(process.info["pid"])
    return found


@pytest.fixture(scope="module")
def workdir(demo: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("demo")
    before = vllm_processes()
    done = subprocess.run(
        [*demo, "--workdir", "runs", "--json"],
        cwd=home,
        env=without_checkout(),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    (home / "rows.json").write_text(done.stdout)
    assert [path.name for path in home.iterdir() if path.name != "rows.json"] == ["runs"]
    assert vllm_processes() <= before
    return home / "runs"


def test_the_table_comes_from_this_run(workdir: Path) -> None:
    rows = json.loads((workdir.parent / "rows.json").read_text())
    assert rows
    tuning = pd.read_parquet(workdir / "tune" / "baselines.parquet")
    printed = {row["fleet"]: row["gpu_hours_per_day"] for row in rows if row.get("fleet")}
    for name, hours in zip(tuning["name"], tuning["gpu_hours"], strict=True):
        assert printed[name] == pytest.approx(hours, rel=1e-3)


def test_every_variant_was_judged_and_measured(workdir: Path) -> None:
    made = [json.loads(path.read_text()) for path in workdir.glob("compress/*/card.json")]
    on_the_way = {card["parent"] for card in made}
    cards = [card for card in made if card["name"] == "bf16" or card["name"] not in on_the_way]
    assert {card["name"] for card in cards} == {"bf16", "int8-w8a8", "pruned-distilled"}
    assert all(0 <= card["quality"]["task_accuracy"]["value"] <= 1 for card in cards)
    points = [json.loads(p.read_text()) for p in workdir.glob("s*/**/measurement.json")]
    assert {point["variant"]["name"] for point in points if point["mode"] == "offline"} == {
        card["name"] for card in cards
    }
    assert any(point["mode"] == "server" for point in points)


def test_the_trail_is_in_mlflow(workdir: Path) -> None:
    with sqlite3.connect(workdir / "mlflow.db") as store:
        stages = {row[0] for row in store.execute("select value from tags where key='stage'")}
        metrics = {row[0] for row in store.execute("select distinct key from metrics")}
    assert len(stages) >= 5
    assert {"ttft_p99_s", "output_tokens_per_s"} <= metrics


def test_the_bundle_and_the_report_are_whole(workdir: Path) -> None:
    from workbench.export import check

    check(workdir / "export" / "bundle")
    page = (workdir / "report.html").read_text()
    assert "plotly" in page
    untrusted = workdir / "verify" / "untrusted.txt"
    if untrusted.exists():
        assert "cannot be trusted" in untrusted.read_text()
    else:
        assert json.loads((workdir / "verify" / "verification.json").read_text())


def test_a_second_run_does_nothing_again(workdir: Path, demo: list[str]) -> None:
    if (workdir / "verify" / "untrusted.txt").exists():
        pytest.skip("this machine is too busy to be measured: verify is to be done again")
    stamps = {path: path.stat().st_mtime_ns for path in workdir.glob("*/done.json")}
    done = subprocess.run(
        [*demo, "--workdir", str(workdir), "--json"],
        cwd=workdir.parent,
        env=without_checkout(),
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/done.json")} == stamps
    assert json.loads(done.stdout) == json.loads((workdir.parent / "rows.json").read_text())


def test_ctrl_c_leaves_no_process_and_keeps_finished_work(
    workdir: Path, demo: list[str], tmp_path: Path
) -> None:
    before = vllm_processes()
    home = tmp_path / "runs"
    process = subprocess.Popen(
        [*demo, "--workdir", str(home)],
        cwd=tmp_path,
        env=without_checkout(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (home / "sweep" / "begun.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Finished work is kept" in said
    assert (home / "compress" / "done.json").exists()
    assert vllm_processes() <= before
