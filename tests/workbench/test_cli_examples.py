"""`workbench examples`: every declared study, and a command that takes its file."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import autoscaling
from serving.errors import InputError
from simulations.scenarios import read_scenario
from workbench.cli.examples import HOME, example, files
from workbench.measure import Study
from workbench.payoff import Question

ROOT = Path(__file__).resolve().parents[2]


def run(cwd: Path, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", "examples", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_every_declared_study_is_listed_once() -> None:
    done = run(ROOT, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    declared = {str(p.relative_to(ROOT)) for p in (ROOT / "experiments").glob("**/*.yaml")}
    assert sorted(one["file"] for one in told) == sorted(declared)
    assert {one["how"] for one in told} == {"measured", "simulated"}
    assert all(one["question"].endswith("?") for one in told)


@pytest.mark.parametrize("file", files(HOME), ids=lambda file: file.stem)
def test_the_command_is_of_what_reads_the_file(file: Path) -> None:
    found = example(file)
    words = shlex.split(found.command)
    assert any(Path(word).resolve() == file for word in words)
    if words[:3] == ["python", "-m", "experiments.autoscaling"]:
        autoscaling.Declared.load(file)
        return
    assert words[0] == "workbench"
    readers: dict[str, Callable[[Path], object]] = {
        "payoff": Question.load,
        "study": read_scenario if found.how == "simulated" else Study.load,
    }
    readers[words[1]](file)


def test_elsewhere_the_whole_path_is_said(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"  workbench study {ROOT}/experiments/fleet/cold-start.yaml\n" in done.stdout
    assert "  What does a cold start cost when a spike comes" in done.stdout


def test_a_path_with_spaces_can_be_pasted(tmp_path: Path) -> None:
    file = tmp_path / "two words.yaml"
    file.write_text("question: Why?\n")
    assert shlex.split(example(file).command) == ["workbench", "study", str(file)]


def test_an_installation_without_the_files_says_where_they_are(tmp_path: Path) -> None:
    for package in ("workbench", "simulations", "serving"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("checkpoint")
        )
    done = run(tmp_path, root=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/experiments holds no studies" in done.stderr
    assert "source" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_study_without_a_question_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mute.yaml"
    file.write_text("kind: fleet\n")
    with pytest.raises(InputError, match=r"mute\.yaml asks no question"):
        example(file)
