"""A real OpenAI-compatible vLLM server: a child process of ours, or one that somebody else started."""

from __future__ import annotations

import os
import sys
import time
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from serving.errors import EngineError, InputError
from serving.plan import EngineArgs, Variant
from workbench.measure import dummies
from workbench.measure.coldstart import CONFIG_VARIABLE, parse_start_log, write_logging_config
from workbench.measure.engine import OnProgress, ReplicaInfo, Run, requests_frame
from workbench.measure.environment import engine_threads, gpu_names
from workbench.measure.failure import explain, tail, telling_line
from workbench.measure.load import send
from workbench.measure.outcome import Request
from workbench.measure.process import ChildGroup, free_port, port_in_use
from workbench.measure.steps import StepLog, cached_tokens, server_steps
from workbench.measure.vllm_attached import AttachedEngine, ask

_PLUGINS = "workbench_steps,workbench_amx,workbench_dummies"
_POLL_S = 0.1
_LOG_DELAY_S = 5.0
"""How long the last steps may take from the engine to the log."""


class ServerEngine:
    """An `Engine` that is `vllm.entrypoints.openai.api_server` on this interpreter.

    Args:    folder: where server.log and steps.jsonl are written.
             port: None takes a free one.
             start_limit_s: a server that does not answer by then has failed.
             environment: variables that differ from this process's, such as the GPUs it may see.
    """

    def __init__(
        self,
        variant: Variant,
        engine_args: EngineArgs,
        *,
        folder: Path,
        port: int | None = None,
        start_limit_s: float = 1800.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.variant = variant
        self.engine_args = engine_args
        self.log = folder / f"{variant.name}-server.log"
        self._step_path = folder / f"{variant.name}-steps.jsonl"
        self._port = port
        self._start_limit_s = start_limit_s
        self._variables = environment or {}
        self._child: ChildGroup | None = None
        self._replica: ReplicaInfo | None = None
        self.url = ""
        self.front: str | None = None
        """The address of a gateway before it, through which it is sent requests."""

    @staticmethod
    def attach(url: str, model: str) -> AttachedEngine:
        """Drive a server that somebody else started; it has no step log."""
        return AttachedEngine(url, model)

    @property
    def replica(self) -> ReplicaInfo:
        if self._replica is None:
            raise EngineError("the server is not running", remedy="Use it in a `with` block.")
        return self._replica

    @property
    def pid(self) -> int | None:
        """Process id, and that of its process group."""
        return self._child.pid if self._child else None

    def __enter__(self) -> Self:
        if self._port is not None and port_in_use(self._port):
            raise InputError(
                f"port(={self._port}) is in use", remedy="Choose another, or leave it out."
            )
        port = self._port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._step_path.parent.mkdir(parents=True, exist_ok=True)
        self._step_path.unlink(missing_ok=True)
        began_s, spawned_at = time.monotonic(), time.time()
        self._child = ChildGroup(self._command(port), self._environment(), self.log)
        try:
            self._await_answer(began_s)
            start_s, answered_at = time.monotonic() - began_s, time.time()
            self._steps = StepLog(self._step_path)
            head = next((r for r in self._read_steps(1) if "kv_blocks" in r), None)
            if head is None:
                raise EngineError(
                    f"vLLM wrote no steps to {self._step_path}",
                    remedy="Install this package in vLLM's environment"
                    " (its entry points must be known there).",
                )
            said = self.log.read_text(errors="replace")
            parts = parse_start_log(said, spawned_at, None, answered_at)
            self._replica = ReplicaInfo(**head, start_s=start_s, cold_start=parts)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._replica = None
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        replica = self.replica
        if self.engine_args.enable_prefix_caching:
            ask(f"{self.url}/reset_prefix_cache", {})
        self._steps.read()
        load = send(
            self.front or self.url,
            self.variant.name,
            requests,
            concurrency=concurrency,
            on_progress=on_progress,
        )
        records = self._read_steps(sum(outcome.error is None for outcome in load.outcomes))
        ended = self.ended()
        return Run(
            requests_frame(load.outcomes),
            server_steps(records, replica, load.start_s),
            doubts=(ended,) if ended else (),
            start_s=load.start_s,
            cached_tokens=cached_tokens(records),
            client=load.report(),
        )

    def ended(self) -> str | None:
        ended = self._child.ended() if self._child else "it was stopped"
        if ended is None:
            return None
        return f"the server died ({ended}): {telling_line(tail(self.log))[:300]}"

    def _command(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", self.variant.model, "--served-model-name", self.variant.name),
            *(["--revision", self.variant.revision] if self.variant.revision else []),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--enable-logging-iteration-details", "--disable-uvicorn-access-log"),
            # On a CPU, engine and worker in one process: one import of vLLM less.
            *([] if gpu_names() else ["--distributed-executor-backend", "uni"]),
            *self.engine_args.cli(),
        ]

    def _environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            **self._variables,
            "WORKBENCH_STEP_LOG": str(self._step_path.resolve()),
            "VLLM_NO_USAGE_STATS": "1",
            # Has the one address by which a run begins with an empty prefix cache.
            "VLLM_SERVER_DEV_MODE": "1",
            CONFIG_VARIABLE: str(write_logging_config(self.log.parent / "logging.json").resolve()),
        }
        if self.engine_args.load_format == "dummy":
            environment[dummies.VARIABLE] = "1"
        if Path(self.variant.model).exists():
            environment["HF_HUB_OFFLINE"] = "1"
        if not gpu_names():
            # vLLM for CPUs takes the one-process executor only where this is 0; the API server
            # stays a process of its own either way.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            environment["OMP_NUM_THREADS"] = str(engine_threads())
        if chosen := environment.get("VLLM_PLUGINS"):
            environment["VLLM_PLUGINS"] = f"{chosen},{_PLUGINS}"
        return environment

    def _await_answer(self, began_s: float) -> None:
        assert self._child is not None
        body = {"model": self.variant.name, "prompt": [0], "max_tokens": 1, "temperature": 0.0}
        while time.monotonic() - began_s < self._start_limit_s:
            ended = self._child.ended()
            if ended is not None:
                raise explain(tail(self.log), self.variant, self.log, f" ({ended})")
            try:
                ask(f"{self.url}/v1/completions", body)
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:200]
                raise EngineError(
                    f"the server of {self.variant.model!r} answered HTTP {error.code}: {said}",
                    remedy=f"Read its log: {self.log}",
                ) from error
            except OSError:
                time.sleep(_POLL_S)
            else:
                return
        raise EngineError(
            f"the server of {self.variant.model!r} did not answer in {self._start_limit_s:g} s",
            remedy=f"Read its log: {self.log}",
        )

    def _read_steps(self, answered: int) -> list[dict[str, Any]]:
        """What the server logged since the last call, until as many requests as came back ended."""
        found: list[dict[str, Any]] = []
        deadline_s = time.monotonic() + _LOG_DELAY_S
        while True:
            found += self._steps.read()
            logged = sum(len(record.get("finished", ())) for record in found)
            dead = self._child is None or self._child.ended() is not None
            if logged >= answered or dead or time.monotonic() > deadline_s:
                return found
            time.sleep(_POLL_S / 10)
