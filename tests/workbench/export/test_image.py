"""What the gateway's image is built from: enough to run it, pinned, and the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from serving.errors import BundleError
from serving.manifests import Images
from workbench import bundle_image
from workbench.bundle_sbom import bill_of_materials
from workbench.export import export

from .bundles import evidence, plan

DIGEST = "sha256:" + "0123456789abcdef" * 4
PINNED = Images(vllm=f"vllm/vllm-openai@{DIGEST}", redis=f"redis@{DIGEST}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    return export(plan(), folder, evidence=evidence(), pinned=PINNED)


def site_of_the_pins(bundle: Path, folder: Path) -> Path:
    """A folder with nothing but the pinned packages, as their image would have it."""
    folder.mkdir()
    for line in (bundle / "docker/requirements.txt").read_text().splitlines():
        found = metadata.distribution(line.partition("==")[0])
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            here = folder / top
            if top != "__pycache__" and not here.exists():
                here.symlink_to(Path(str(found.locate_file(top))))
    return folder


def test_the_gateway_runs_from_the_bundle_and_its_pins_alone(bundle: Path, tmp_path: Path) -> None:
    site = site_of_the_pins(bundle, tmp_path / "site")
    code = (
        "import sys; from pathlib import Path; import serving.gateway.server;"
        "from serving.cli import main; from serving.gateway.settings import load;"
        "print(serving.__file__, load(Path(sys.argv[1])).model);"
        "sys.argv[1:] = ['gateway', '--help']; main()"
    )
    # -S: nothing that is installed here is seen.
    done = subprocess.run(
        [sys.executable, "-S", "-B", "-c", code, str(bundle / "base/gateway/settings.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{bundle / 'docker'}:{site}",
            "GATEWAY_TRACKS": '{"stable": ["http://127.0.0.1:8000"]}',
        },
    )
    assert done.returncode == 0, done.stderr
    where, model, *_ = done.stdout.split()
    assert Path(where).is_relative_to(bundle / "docker")
    assert model == "bf16"
    assert "--config" in done.stdout


def test_no_part_of_the_gateway_is_left_out(bundle: Path) -> None:
    there = {p.relative_to(bundle / "docker").as_posix() for p in (bundle / "docker").rglob("*")}
    for needed in ("serving/gateway/api.py", "serving/cli/__init__.py", "serving/plan.py"):
        assert needed in there
    assert {p for p in there if "page/" in p}
    assert not {p for p in there if "__pycache__" in p}


def test_every_requirement_is_pinned_to_what_is_installed(bundle: Path) -> None:
    lines = (bundle / "docker/requirements.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(names)
    assert {"aiohttp", "redis", "hiredis", "pydantic-core", "structlog"} <= set(names)
    assert not {"torch", "vllm", "numpy"} & set(names)
    for line in lines:
        name, version = line.split("==")
        assert metadata.version(name) == version


def test_what_is_not_installed_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_image, "_wanted", lambda: ["no-such-package-at-all>=1"])
    with pytest.raises(BundleError, match="needs no-such-package-at-all"):
        bundle_image.pins()


def test_the_bill_of_materials_is_cyclonedx_and_the_same_each_time(bundle: Path) -> None:
    text = (bundle / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    made = json.loads(text)
    assert "timestamp" not in made["metadata"]
    components = {one["name"]: one for one in made["components"]}
    for line in (bundle / "docker/requirements.txt").read_text().splitlines():
        name, version = line.split("==")
        assert components[name]["version"] == version
        assert components[name]["purl"] == f"pkg:pypi/{name}@{version}"
    assert components["vllm/vllm-openai"]["hashes"][0]["content"] == DIGEST.split(":")[1]
    assert components["gateway"]["properties"][0]["name"] == "workbench:pinned"
    pinned = bundle_image.pins()
    again = [bill_of_materials("winner", pinned, PINNED) for _ in range(2)]
    assert again == [text, text]
    other = bill_of_materials("winner", pinned | {"x": "1"}, PINNED)
    assert json.loads(other)["serialNumber"] != made["serialNumber"]


def test_the_image_refuses_a_base_that_moves(bundle: Path) -> None:
    text = (bundle / "docker/Dockerfile").read_text()
    (guard,) = (line for line in text.splitlines() if line.startswith("RUN case"))
    for base, refused in (("python:3.12", True), (f"python@{DIGEST}", False)):
        done = subprocess.run(
            ["sh", "-c", guard.removeprefix("RUN ")],
            env={"PYTHON_IMAGE": base},
            capture_output=True,
        )
        assert (done.returncode != 0) == refused
    assert "latest" not in text
