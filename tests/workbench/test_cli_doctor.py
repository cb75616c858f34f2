"""`workbench doctor` and its twin for who has a bundle only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.doctor.machines import written

ROOT = Path(__file__).resolve().parents[2]


def run(package: str, *arguments: str, width: int = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", package, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(width)},
    )


def test_the_command_says_one_line_each_and_a_verdict(tmp_path: Path) -> None:
    folder = written(tmp_path, image=None)
    done = run("workbench.cli", "doctor", str(folder))
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 19
    assert lines[-1].startswith("Not ready: ")
    assert "image pinned" in lines[-1]
    assert all(line.split()[0] in ("pass", "warn", "fail", "skip") for line in lines[:-1])
    as_json = run("workbench.cli", "doctor", str(folder), "--json")
    assert as_json.returncode == 1
    told = json.loads(as_json.stdout)
    assert told["ready"] is False
    assert len(told["findings"]) == 18


def test_the_command_without_a_bundle() -> None:
    done = run("workbench.cli", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("Ready")


@pytest.mark.parametrize("package", ["workbench.cli", "serving.cli"])
def test_bad_input_is_one_line(package: str) -> None:
    done = run(package, "doctor", "/no/such/bundle")
    assert done.returncode == 2
    assert "/no/such/bundle is no folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_has_an_example() -> None:
    done = run("workbench.cli", "doctor", "--help")
    assert "workbench doctor runs/export/bundle" in " ".join(done.stdout.split())
