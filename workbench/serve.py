"""Serve: a bundle on this machine: vLLM, the gateway, and Redis and Prometheus where installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serving.errors import EngineError, InputError
from serving.plan import Plan, Variant
from workbench.export import MODEL, check
from workbench.measure import ServerEngine
from workbench.measure.environment import gpu_names
from workbench.measure.failure import tail, telling_line
from workbench.measure.process import ChildGroup, free_port, port_in_use
from workbench.measure.vllm_attached import ask

OnState = Callable[[str], None]
_READY_S = 60.0
_DRAIN_S = 60.0
"""For streams to end before what serves them is killed."""
TRACK = "stable"


@dataclass(frozen=True)
class Service:
    """What runs, and where it answers."""

    plan: Plan
    url: str
    """Of the gateway."""
    replicas: tuple[ServerEngine, ...]
    parts: Mapping[str, ChildGroup]
    addresses: Mapping[str, str]
    """What a person opens: gateway, metrics, Prometheus, logs."""

    def ended(self) -> str | None:
        """Who has ended and how; None while all run."""
        for number, replica in enumerate(self.replicas):
            if (how := replica.ended()) is not None:
                return f"replica {number}: {how}"
        for name, part in self.parts.items():
            if (how := part.ended()) is not None:
                return f"{name} ended ({how})"
        return None

    @property
    def example(self) -> str:
        """A line for a terminal."""
        body = json.dumps(
            {
                "model": self.plan.variant.name,
                "messages": [{"role": "user", "content": "Hello"}],
                "stream": True,
            }
        )
        address = f"{self.url}/v1/chat/completions"
        return f"curl -N {address} -H 'Content-Type: application/json' -d '{body}'"


@contextmanager
def serve(
    bundle: Path,
    *,
    folder: Path,
    replicas: int | None = None,
    port: int | None = None,
    redis_url: str | None = None,
    on_state: OnState = lambda state: None,
) -> Iterator[Service]:
    """Start what a bundle describes; leaving ends it, streams first.

    Args:    folder: for logs, and what Prometheus keeps.
             replicas: vLLM servers; None is as many as the GPUs carry, one without.
             port: of the gateway; None takes a free one.
             redis_url: a Redis that runs; None starts one where it is installed.
    Raises:  BundleError: a bundle that is incomplete or was changed.
             InputError: more replicas than GPUs, a port in use.
             EngineError: a part that did not start.
    """
    plan = check(bundle)
    count = _count(plan, replicas)
    if port is not None and port_in_use(port):
        raise InputError(f"port(={port}) is in use", remedy="Choose another, or leave it out.")
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    with ExitStack() as stack:
        parts: dict[str, ChildGroup] = {}

        def start(name: str, command: list[str], environment: Mapping[str, str]) -> None:
            on_state(f"starting {name}")
            log = folder / f"{name}.log"
            part = ChildGroup(command, {**os.environ, **environment}, log)
            stack.callback(part.kill, _DRAIN_S)
            parts[name] = part

        servers = _start_replicas(plan, bundle, folder, count, stack, on_state)
        if redis_url is None and shutil.which("redis-server"):
            own = free_port()
            redis_url = f"redis://127.0.0.1:{own}/0"
            quiet = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            start("redis", ["redis-server", "--port", str(own), *quiet], {})
        settings = _settings(plan, servers, port, redis_url)
        start(
            "gateway",
            [sys.executable, "-m", "serving.cli", "gateway", *_config(bundle)],
            {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **settings},
        )
        url = f"http://127.0.0.1:{port}"
        _await_ready(url, parts["gateway"], folder / "gateway.log")
        addresses = {
            "chat page": f"{url}/",
            "API": f"{url}/v1",
            "metrics": f"{url}/metrics",
            "logs": str(folder),
        }
        if shutil.which("prometheus"):
            at = free_port()
            start("prometheus", _prometheus(bundle, folder, at, port, servers), {})
            addresses["Prometheus"] = f"http://127.0.0.1:{at}/alerts"
        yield Service(plan, url, servers, parts, addresses)


def on_disk(variant: Variant, bundle: Path) -> Variant:
    """The variant with a model that the bundle carries named by where it lies."""
    if variant.revision is not None:
        return variant
    return variant.model_copy(update={"model": str((bundle / MODEL).resolve())})


def _count(plan: Plan, replicas: int | None) -> int:
    gpus, each = len(gpu_names()), plan.gpus_per_replica
    most = gpus // each if gpus else None
    if replicas is not None and replicas < 1:
        raise InputError(f"replicas(={replicas}) must be >= 1", remedy="Ask for at least one.")
    if most is not None and (replicas or 1) > most:
        raise InputError(
            f"replicas(={replicas or 1}) of {each} GPU(s) do not fit the {gpus} of this machine",
            remedy=f"Ask for at most {most}.",
        )
    wanted = plan.replicas or (plan.hpa.min_replicas if plan.hpa else 1)
    return replicas or max(1, min(wanted, most if most is not None else 1))


def _start_replicas(
    plan: Plan,
    bundle: Path,
    folder: Path,
    count: int,
    stack: ExitStack,
    on_state: OnState,
) -> tuple[ServerEngine, ...]:
    """All at the same time: a start is mostly waiting for disk and compiler."""
    on_state(f"starting {count} x vLLM (a minute or more)")
    each = plan.gpus_per_replica
    engines = []
    for number in range(count):
        mine = ",".join(str(gpu) for gpu in range(number * each, (number + 1) * each))
        seen = {"CUDA_VISIBLE_DEVICES": mine} if gpu_names() else {}
        engines.append(
            ServerEngine(
                on_disk(plan.variant, bundle),
                plan.engine,
                folder=folder / f"replica-{number}",
                environment=seen,
            )
        )
    with ThreadPoolExecutor(count) as pool:
        started = [pool.submit(stack.enter_context, engine) for engine in engines]
        for one in started:
            one.result()
    return tuple(engines)


def _config(bundle: Path) -> list[str]:
    exported = bundle / "base" / "gateway" / "settings.json"
    return ["--config", str(exported)] if exported.exists() else []


def _settings(
    plan: Plan, servers: tuple[ServerEngine, ...], port: int, redis_url: str | None
) -> dict[str, str]:
    """Where things are on this machine; the rest is as exported."""
    where = {
        "GATEWAY_MODEL": plan.variant.name,
        "GATEWAY_TRACKS": json.dumps({TRACK: [server.url for server in servers]}),
        "GATEWAY_STABLE": TRACK,
        "GATEWAY_SPEC": plan.gateway.model_dump_json(),
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "GATEWAY_ANONYMOUS": "true",
    }
    return where | ({"GATEWAY_REDIS_URL": redis_url} if redis_url else {})


def _await_ready(url: str, gateway: ChildGroup, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    while time.monotonic() < deadline_s:
        if (how := gateway.ended()) is not None:
            raise EngineError(
                f"the gateway did not start ({how}): {telling_line(tail(log))[:300]}",
                remedy=f"Read its log: {log}",
            )
        try:
            ask(f"{url}/readyz")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise EngineError(
        f"the gateway was not ready within {_READY_S:g} s", remedy=f"Read its log: {log}"
    )


def _prometheus(
    bundle: Path, folder: Path, at: int, gateway: int, servers: tuple[ServerEngine, ...]
) -> list[str]:
    """Prometheus with the bundle's rules over what runs here."""
    config: dict[str, Any] = yaml.safe_load((bundle / "monitoring/prometheus.yml").read_text())
    replicas = [server.url.removeprefix("http://") for server in servers]
    config["rule_files"] = [str((bundle / "monitoring" / "rules.yml").resolve())]
    config["scrape_configs"] = [
        {"job_name": name, "static_configs": [{"targets": targets}]}
        for name, targets in (("vllm", replicas), ("gateway", [f"127.0.0.1:{gateway}"]))
    ]
    config.pop("alerting", None)
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{at}",
    ]
