"""The wheel holds all that the commands need, and they run from it outside the checkout.

tests/test_demo.py runs the whole pipeline from it.
"""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, without_checkout

pytestmark = pytest.mark.slow
_NOT_SHIPPED = {"experiments/LOG.md", "serving/pyproject.toml"}


def run(program: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [str(program), *arguments],
        cwd=cwd,
        env=without_checkout(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    for package in ("serving", "simulations", "workbench", "experiments"):
        for path in (ROOT / package).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            made = "__pycache__" in name or "/results/" in name or name in _NOT_SHIPPED
            if path.is_file() and not made:
                assert name in packed, f"{name}: add it to package-data in pyproject.toml"


def test_everything_is_imported_from_it(programs: Path, tmp_path: Path) -> None:
    code = (
        "import experiments, serving, simulations, workbench, json;"
        "print(json.dumps([m.__file__ for m in (experiments, serving, simulations, workbench)]))"
    )
    for file in json.loads(run(programs / "python", "-c", code, cwd=tmp_path)):
        assert Path(file).is_relative_to(programs.parent)


def test_the_shipped_model_and_the_pages_are_found(programs: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files;"
        "from transformers import AutoConfig, AutoTokenizer;"
        "from workbench.model import shipped_checkpoint;"
        "home = shipped_checkpoint();"
        "words = len(AutoTokenizer.from_pretrained(home));"
        "assert AutoConfig.from_pretrained(home).vocab_size >= words;"
        "assert (home / 'model.safetensors').stat().st_size > 1e6;"
        "assert '<html' in (files('serving.gateway') / 'page' / 'chat.html').read_text().lower();"
        "templates = files('serving.manifests') / 'templates' / 'base';"
        "assert (templates / 'vllm' / 'deployment.yaml').is_file()"
    )
    run(programs / "python", "-c", code, cwd=tmp_path)


def test_a_listed_example_runs(programs: Path, tmp_path: Path) -> None:
    listed = json.loads(run(programs / "workbench", "examples", "--json", cwd=tmp_path))
    (idle,) = (one for one in listed if one["name"] == "night-idle")
    assert Path(idle["file"]).is_relative_to(programs.parent)
    program, *arguments = idle["command"].split()
    said = run(programs / program, *arguments, "--out", "found", cwd=tmp_path)
    assert "azure-code-week-2024" in said
    assert (tmp_path / "found" / "night-idle" / "index.html").is_file()


def test_the_serving_command_is_there(programs: Path, tmp_path: Path) -> None:
    assert "shop" in run(programs / "serving", "keys", "new", "shop", cwd=tmp_path)
