"""One machine: every variable, volume, file and service that compose.yaml names is there."""

from __future__ import annotations

import re

import yaml

from serving.manifests import render
from tests.serving.plans import plan

FILES = render(plan())
COMPOSE = yaml.safe_load(FILES["compose.yaml"])
SERVICES = COMPOSE["services"]


def test_every_variable_is_one_that_must_be_set() -> None:
    text = "\n".join(line for line in FILES["compose.yaml"].splitlines() if "#" not in line)
    used = dict(re.findall(r"\$\{([A-Z_]+)(:\?)?", text))
    assert set(used.values()) == {":?"}  # unset or empty, compose refuses to start
    given = set(re.findall(r"^([A-Z_]+)=", FILES["images/images.env"], re.MULTILINE))
    assert used.keys() == given | {"API_KEYS_FILE"}


def test_every_image_comes_pinned_or_is_built_here() -> None:
    assert set(SERVICES) == {"vllm", "gateway", "redis", "prometheus"}
    for name, service in SERVICES.items():
        if name == "gateway":
            assert service["build"]["context"] == "docker"
        else:
            assert service["image"].startswith(f"${{{name.upper()}_IMAGE:?")


def test_what_is_mounted_and_waited_for_is_there() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        for volume in service.get("volumes", ()):
            source, _, _ = volume.replace(":?", "?").partition(":")
            if source.startswith("./"):
                path = source.removeprefix("./")
                assert path == "model" or any(f.startswith(path) for f in FILES), source
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")  # nothing is open to the network


def test_prometheus_scrapes_what_runs_here() -> None:
    found = yaml.safe_load(FILES["monitoring/prometheus.yml"])
    targets = {
        target
        for job in found["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    }
    assert {target.partition(":")[0] for target in targets} <= set(SERVICES)
    for name in found["rule_files"]:
        assert f"monitoring/{name}" in FILES
