"""A server that somebody else started, and the plain HTTP that every server is asked with."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

from serving.errors import EngineError, InputError
from workbench.measure.engine import (
    OnProgress,
    ReplicaInfo,
    Run,
    requests_frame,
    steps_frame,
)
from workbench.measure.load import send
from workbench.measure.outcome import Request


class AttachedEngine:
    """An `Engine` that somebody else started: requests are recorded, steps are not."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self._replica: ReplicaInfo | None = None

    @property
    def replica(self) -> ReplicaInfo:
        if self._replica is None:
            raise EngineError("not attached", remedy="Use it in a `with` block.")
        return self._replica

    def __enter__(self) -> Self:
        try:
            served = [entry["id"] for entry in ask(f"{self.url}/v1/models")["data"]]
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(
                f"no OpenAI-compatible server at {self.url!r} ({error})",
                remedy="Check the address and that the server is ready.",
            ) from error
        if self.model not in served:
            raise InputError(
                f"model(={self.model!r}) is not served at {self.url}", remedy=f"It serves {served}."
            )
        found = dict(re.findall(r'(\w+)="([^"]*)"', self._metric("vllm:cache_config_info")))
        self._replica = ReplicaInfo(
            engine_version=self._version(),
            kv_blocks=int(found.get("num_gpu_blocks") or 0),
            block_size_tokens=int(found.get("block_size") or 16),
            start_s=0.0,
            async_scheduling=False,
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self._replica = None

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        with suppress(OSError):  # a server in production has no such address
            _fetch(f"{self.url}/reset_prefix_cache", b"")
        began = self._metric("process_start_time_seconds")
        hits = self._number("vllm:prefix_cache_hits_total")
        load = send(
            self.url, self.model, requests, concurrency=concurrency, on_progress=on_progress
        )
        restarted = self._metric("process_start_time_seconds") != began
        found = self._number("vllm:prefix_cache_hits_total")
        return Run(
            requests_frame(load.outcomes),
            steps_frame([]),
            doubts=("the engine was restarted during the run",) if restarted else (),
            start_s=load.start_s,
            cached_tokens=None if found is None or hits is None else int(found - hits),
            client=load.report(),
        )

    def ended(self) -> str | None:
        return None  # whether it comes back is for those to say who run it

    def _number(self, name: str) -> float | None:
        text = self._metric(name).rpartition(" ")[2]
        try:
            return float(text)
        except ValueError:
            return None

    def _metric(self, name: str) -> str:
        """The first line of a metric; empty where the server has none."""
        try:
            lines = _fetch(f"{self.url}/metrics").decode().splitlines()
        except OSError:
            return ""
        return next((line for line in lines if line.startswith(name)), "")

    def _version(self) -> str:
        try:
            return str(ask(f"{self.url}/version")["version"])
        except (OSError, ValueError, KeyError):
            return "unknown"


def first_model(url: str) -> tuple[str, int | None]:
    """Name of the first model that a server has, and its longest context where it says so.

    Raises:  EngineError: no OpenAI-compatible server answers there.
    """
    try:
        entry = ask(f"{url.rstrip('/')}/v1/models")["data"][0]
        return str(entry["id"]), entry.get("max_model_len")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EngineError(
            f"no OpenAI-compatible server at {url!r} ({error})",
            remedy="Check the address and that the server is ready.",
        ) from error


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that an address answers with; a POST where there is a body."""
    return json.loads(_fetch(url, None if body is None else json.dumps(body).encode()))


def _fetch(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    # No proxy of the environment: the server is on this machine or named by its own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content
