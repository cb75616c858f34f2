"""The command line: help with examples, and one clear line with exit code 2 for bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from workbench.cli import app, common

COMMANDS = [
    *("demo", "compress", "measure", "fit", "simulate", "tune", "export", "verify", "report"),
    *("load", "study", "compare", "capacity", "payoff", "runs", "log", "model train"),
    *("serve", "doctor", "fidelity", "examples"),
    *(f"compress {name}" for name in ("quantize", "prune", "sparsify", "distil", "chain")),
    *("compress judge", "compress lineage"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, and a command that leaves does not take the tests with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "leave", sys.exit)


def workbench(*arguments: str) -> Result:
    """As a process would answer, without the seconds that one takes to start."""
    return CliRunner().invoke(app, arguments, prog_name="workbench")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = workbench(*command.split(), "--help")
    assert done.exit_code == 0
    assert re.search(rf"Examples?: workbench {command}", " ".join(done.stdout.split()))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--model", "/no/such/model"], ["'/no/such/model'", "config.json", "save_pre"]),
        (["measure", "--rates", "1,-2"], ["rates_rps", "-2", "> 0"]),
        (["measure", "--rates", "fast"], ["--rates(='fast')", "1,2,4"]),
        (["measure", "--batches", "64"], ["64", "max_num_seqs(=32)"]),
        (["tune", "--ttft-p99", "-1"], ["ttft_p99_s", "-1", "greater than 0"]),
        (["tune", "--trials", "0"], ["trials", "0"]),
        (["tune", "--space", "none.yaml"], ["none.yaml", "Check the path"]),
        (["demo", "--peak-rps", "0"], ["peak_rps", "0"]),
        (["fit", "--device", "tpu", "--config", "x"], ["device(='tpu')", "h100"]),
        (["fit", "--device", "h100"], ["--device(='h100')", "--config"]),
        (["fit", "--device", "h100", "--config", "none.json"], ["none.json", "config.json"]),
        (["fit", "--out", "model.json"], ["--out(='model.json')", "--device"]),
        (["fit", "--check"], ["workbench compress", "first"]),
        (["simulate", "--latency", "m.json"], ["--latency(='m.json')", "--plan"]),
        (["tune"], ["workbench fit", "first"]),
        (["report"], ["first"]),
        (["load", "--rate", "2", "--concurrency", "4"], ["--concurrency(='4')", "--rate(=2.0)"]),
        (["load", "--prompt-tokens", "many"], ["--prompt-tokens(='many')", "log-normal"]),
        (["load", "--engine", "{"], ["--engine(='{')", "JSON"]),
        (["load", "--engine", '{"max_num_seqs": 0}'], ["max_num_seqs"]),
        (["load", "--shared-prefix", "256"], ["--shared-prefix(='256')", "256:4"]),
        (["load", "--trace", "none.csv"], ["none.csv"]),
        (["load", "--variant", "int8"], ["--variant(='int8')", "workbench compress"]),
        (["load", "--url", "http://127.0.0.1:9"], ["http://127.0.0.1:9", "Check the address"]),
        (["compare"], ["b is not said", "--b-engine"]),
        (["capacity", "--attainment", "2"], ["attainment(=2.0)"]),
        (["study", "none.yaml"], ["none.yaml", "Check the path"]),
        (["compress", "quantize", "int3"], ["scheme", "int3", "int8-gptq"]),
        (["compress", "quantize", "int8-gptq", "--variant", "x"], ["--variant(='x')"]),
        (["compress", "distil"], ["to begin with", "--variant"]),
        (["compress", "distil", "--config", "layers"], ["--config(='layers')"]),
        (["compress", "chain", "prune:layers"], ["prune:layers", "NAME=VALUE"]),
        (["compress", "prune", "--name", "No"], ["--name", "small letters"]),
        (["compress", "judge"], ["no variants"]),
        (["compress", "judge", "--tasks", ","], ["no variants"]),
        (["compress", "--recipes", "none.yaml"], ["none.yaml", "Check the file"]),
        (["payoff", "none.yaml"], ["none.yaml", "Check the file"]),
        (["demo", "--workdir", "/proc/none"], ["/proc/none", "Choose"]),
    ],
)
def test_bad_input_is_one_line_with_the_value(
    arguments: list[str], says: list[str], tmp_path: Path
) -> None:
    if "--workdir" not in arguments:
        arguments = [*arguments, "--workdir", str(tmp_path / "runs")]
    done = workbench(*arguments)
    assert done.exit_code == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for part in says:
        assert part in lines[0]


def test_a_model_is_assumed_from_a_device_card(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "workbench" / "model" / "checkpoint" / "config.json"
    out = tmp_path / "assumed.json"
    asked = ["fit", "--device", "l4", "--config", str(config), "--out", str(out)]
    done = workbench(*asked, "--json")
    assert done.exit_code == 0, done.stderr
    assert {row["region"] for row in json.loads(done.stdout)} >= {"decode, batch 1"}
    assert "assumed from the device card of l4" in done.stderr
    assert json.loads(out.read_text())["assumed"]
    assert "bound" in workbench(*asked).stdout


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workbench.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_what_libraries_print_is_not_shown() -> None:
    done = process("compress", "prune", "--layers", "9", "--no-judge")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "layers(=9) must be between 0 and 3" in line


def test_debug_shows_the_traceback() -> None:
    done = process("demo", "--model", "/no/such/model", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ModelError" in done.stderr


def test_an_unknown_option_is_refused() -> None:
    done = workbench("demo", "--modle", "x")
    assert done.exit_code == 2
    assert "--modle" in done.stderr


def test_a_value_of_the_wrong_type_is_named() -> None:
    done = workbench("load", "--rate", "fast")
    assert done.exit_code == 2
    assert "'--rate': 'fast'" in done.stderr
    assert "valid number" in done.stderr


def test_nothing_is_written_outside_the_workdir(tmp_path: Path) -> None:
    workbench("tune", "--workdir", "data")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
