"""Real vLLM in this process, driven step by step."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any, Self

from serving.errors import EngineError
from serving.plan import EngineArgs, Variant
from workbench.measure.drive import Produced, drive
from workbench.measure.engine import OnProgress, ReplicaInfo, Request, Run, Step
from workbench.measure.failure import explain
from workbench.measure.steps import CacheLedger, cache_doubts

_ENVIRONMENT = {
    # Engine and caller share one process, so that each step is timed where it happens.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class OfflineEngine:
    """An `Engine` that is vLLM's LLMEngine; several may follow one another in one process.

    Tokens are not turned into text: a server does that in another process than its engine, and what
    is timed here is the engine's step (schedule, execute, sample, update).
    """

    def __init__(self, variant: Variant, engine_args: EngineArgs) -> None:
        self.variant = variant
        self.engine_args = engine_args
        self._engine: Any = None
        self._replica: ReplicaInfo | None = None
        self._records: list[dict[str, Any]] = []
        self._affinity: set[int] = set()

    @property
    def replica(self) -> ReplicaInfo:
        if self._replica is None:
            raise EngineError("the engine is not running", remedy="Use it in a `with` block.")
        return self._replica

    def __enter__(self) -> Self:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # vLLM for CPUs binds the process to cores: given back when the engine goes.
        self._affinity = os.sched_getaffinity(0)
        began_s = time.monotonic()
        try:
            self._engine = self._load()
            self._replica = ReplicaInfo(
                **self._description(), start_s=time.monotonic() - began_s
            )
            self._first_answer()
            self._replica = ReplicaInfo(
                **self._description(), start_s=time.monotonic() - began_s
            )
        except Exception as error:
            self.__exit__()
            raise explain(f"{type(error).__name__}: {error}", self.variant) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def _load(self) -> Any:
        import vllm
        from vllm.v1.engine.llm_engine import LLMEngine

        from workbench.measure.steplog import StepLogger

        arguments = vllm.EngineArgs(
            model=self.variant.model,
            revision=self.variant.revision,
            enable_logging_iteration_details=True,
            **self.engine_args.kwargs(),
        )
        return LLMEngine.from_engine_args(
            arguments,
            stat_loggers=[
                lambda config, index=0: StepLogger(config, index, sink=self._records.append)
            ],
        )
