"""Engines that behave in one known way, for tests that start them in other processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from serving.errors import EngineError
from serving.plan import EngineArgs, Variant
from workbench.measure import FakeEngine, Request, Run
from workbench.measure.engine import OnProgress

DEADLY_BATCH = 4


class Noted(FakeEngine):
    """Writes each start and run, with the process, to runs.log beside the model."""

    def note(self, what: str) -> None:
        with (Path(self.variant.model) / "runs.log").open("a") as log:
            log.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {what}\n")

    def __enter__(self) -> Noted:
        self.note("start")
        super().__enter__()
        return self

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        self.note(f"run {concurrency} {len(requests)}")
        return super().run(requests, concurrency=concurrency, on_progress=on_progress)


class Slow(Noted):
    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        time.sleep(0.3)
        return super().run(requests, concurrency=concurrency, on_progress=on_progress)


class Killed(Noted):
    """Takes its process along at one batch size, as the kernel's memory killer does."""

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        # The warm-up has shorter prompts.
        if concurrency == DEADLY_BATCH and len(requests[0].prompt_token_ids) > 16:
            os.kill(os.getpid(), 9)
        return super().run(requests, concurrency=concurrency, on_progress=on_progress)


class Dying(Noted):
    """Like a server whose process ends: it comes back with what it has, and is no more."""

    dead: str | None = None

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        if concurrency == DEADLY_BATCH and len(requests[0].prompt_token_ids) > 16:
            self.dead = (
                "the server died (exit status 1): torch.OutOfMemoryError: CUDA out of memory"
            )
        return super().run(requests, concurrency=concurrency, on_progress=on_progress)

    def ended(self) -> str | None:
        return self.dead


def noted(variant: Variant, engine_args: EngineArgs, folder: Path) -> Noted:
    return Noted(variant, engine_args)


def slow(variant: Variant, engine_args: EngineArgs, folder: Path) -> Slow:
    return Slow(variant, engine_args)


def killed(variant: Variant, engine_args: EngineArgs, folder: Path) -> Killed:
    return Killed(variant, engine_args)


def dying(variant: Variant, engine_args: EngineArgs, folder: Path) -> Dying:
    return Dying(variant, engine_args)


def refusing(variant: Variant, engine_args: EngineArgs, folder: Path) -> Noted:
    if engine_args.max_num_seqs == 16:
        raise EngineError("vLLM did not start: No available memory", remedy="Free memory.")
    return Noted(variant, engine_args)


def log(variant: Variant) -> list[str]:
    """What was noted, without process and devices."""
    path = Path(variant.model) / "runs.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split(" ", 2)[2] for line in lines]


def measured(variant: Variant) -> list[str]:
    """The runs that were not the warm-up of an engine."""
    return [line for line in log(variant) if line.startswith("run") and line != "run 4 8"]
