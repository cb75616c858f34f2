"""Commands that compress and judge, and the payoff map from one file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.plan import Variant
from workbench.model import shipped_checkpoint
from workbench.track import list_runs


def workbench(*arguments: str, workdir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *arguments, "--workdir", str(workdir)],
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_variants_are_made_named_tracked_and_shown_as_a_tree(tmp_path: Path) -> None:
    done = workbench("compress", "quantize", "fp16", "--no-judge", "--json", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["variant"].strip("└ "): row for row in json.loads(done.stdout)}
    assert set(rows) == {"bf16", "fp16"}
    chain = (
        "compress",
        "chain",
        "prune:layers=1,calibration_sequences=8",
        "fp32",
        "--name",
        "small",
        "--no-judge",
    )
    done = workbench(*chain, workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    done = workbench(
        *("compress", "prune", "--mlp-width", "512", "--variant", "small.1-pruned", "--no-judge"),
        *("--task-share", "0.25"),
        workdir=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    done = workbench("compress", "lineage", "--json", workdir=tmp_path)
    tree = [(row["variant"], row["made_by"]) for row in json.loads(done.stdout)]
    assert tree == [
        ("bf16", "none"),
        ("└ fp16", "fp16"),
        ("└ small.1-pruned", "prune"),
        ("  └ small", "fp32"),
        ("  └ small.1-pruned-pruned", "prune"),
    ]
    twice = Variant.read(tmp_path / "variants" / "small.1-pruned-pruned" / "card.json")
    assert twice.parent == "small.1-pruned"
    assert twice.parameters["task_share"] == 0.25
    assert set(list_runs(tmp_path)["name"]) >= {"fp16", "small", "small.1-pruned-pruned"}


def test_a_sparse_variant_says_that_it_gains_no_speed(tmp_path: Path) -> None:
    command = ("compress", "sparsify", "--algorithm", "wanda", "--calibration-sequences", "4")
    done = workbench(*command, "--no-judge", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "sparse50: sparse weights, dense kernels: vLLM gains no speed" in done.stdout


def test_a_directory_is_of_one_model(tmp_path: Path) -> None:
    done = workbench("compress", "quantize", "fp16", "--no-judge", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    other = tmp_path / "other"
    other.symlink_to(shipped_checkpoint())
    command = ("compress", "quantize", "fp32", "--model", str(other), "--no-judge")
    assert workbench(*command, workdir=tmp_path).returncode == 0  # the same, by another path
    Variant(name="bf16", model="elsewhere").write(tmp_path / "variants" / "bf16" / "card.json")
    done = workbench("compress", "quantize", "fp32", "--no-judge", workdir=tmp_path)
    assert done.returncode == 2
    assert "holds variants of another model, elsewhere" in done.stderr


PAYOFF = """
recipes:
  half: fp16
  full: fp32
  broken: {scheme}
study:
  name: little
  question: Does it pay?
  engine: {{max_model_len: 256, max_num_seqs: 8, max_num_batched_tokens: 256, enforce_eager: true,
    gpu_memory_utilization: 0.3, kv_cache_memory_bytes: 67108864}}
  lengths: [[16, 8]]
  concurrency: [1, 4]
  repeats: 2
"""


def test_what_this_machine_cannot_serve_is_refused_by_name(tmp_path: Path) -> None:
    from workbench.compress.machine import missing
    from workbench.compress.quantize import SCHEMES

    if missing(SCHEMES["fp8"].needs) is None:
        pytest.skip("this machine has the kernels for FP8")
    file = tmp_path / "payoff.yaml"
    file.write_text(PAYOFF.format(scheme="fp8"))
    done = workbench("payoff", str(file), workdir=tmp_path / "runs")
    assert done.returncode == 2
    assert "broken: scheme(='fp8') cannot run on this machine" in done.stderr
    assert "--skip-unsupported" in done.stderr
    assert not (tmp_path / "runs" / "variants").exists()


@pytest.mark.vllm
def test_payoff_goes_from_a_file_to_a_page(tmp_path: Path) -> None:
    file, runs = tmp_path / "payoff.yaml", tmp_path / "runs"
    file.write_text(PAYOFF.format(scheme="fp8-dynamic"))
    command = ("payoff", str(file), "--skip-unsupported", "--usd-per-hour", "0.2")
    done = workbench(*command, "--json", workdir=runs)
    # A busy machine may spoil a point of these short ones; it is measured again then.
    for _ in range(2):
        if "left out: " in done.stderr.replace("left out: broken", ""):
            done = workbench(*command, "--json", workdir=runs)
    assert done.returncode == 0, done.stderr
    assert "left out: broken: " in done.stderr
    rows = json.loads(done.stdout)
    assert {row["variant"] for row in rows} == {"bf16", "half", "full"}
    assert {row["batch"] for row in rows} == {1, 4}
    assert all(row["usd_per_million_tokens"] > 0 for row in rows)
    assert all(row["quality"] == "keeps" for row in rows)
    folder = runs / "studies" / "little"
    for name in ("little.html", "payoff.parquet", "payoff.md", "crossovers.csv"):
        assert (folder / name).stat().st_size > 0
    assert "From full to" not in (folder / "payoff.md").read_text()
    tracked = list_runs(runs)
    assert {"half", "full"} <= set(tracked["name"])
    # Nothing is made, judged or measured again.
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/measurement.json")}
    again = workbench(*command, workdir=runs)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/measurement.json")} == before
    assert "Of the variants that keep the quality" in " ".join(again.stdout.split())


def test_a_lineage_of_nothing_says_what_makes_a_variant(tmp_path: Path) -> None:
    done = workbench("compress", "lineage", workdir=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "holds no variants. Make one: workbench compress quantize" in done.stdout
    assert json.loads(workbench("compress", "lineage", "--json", workdir=tmp_path).stdout) == []
