"""Real vLLM in this process, driven step by step."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import nan
from typing import Any, Self

from serving.errors import EngineError
from serving.plan import EngineArgs, Variant
from workbench.measure import dummies
from workbench.measure.coldstart import ColdStartParts, captured_start_log, parse_start_log
from workbench.measure.drive import Produced, drive
from workbench.measure.engine import OnProgress, ReplicaInfo, Run, Step
from workbench.measure.environment import engine_threads, gpu_names
from workbench.measure.failure import explain, telling_line
from workbench.measure.outcome import Request
from workbench.measure.steps import CacheLedger, cached_tokens

_ENVIRONMENT = {
    # Engine and caller share one process, so that each step is timed where it happens.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Keep a loaded module out of sight.

    vLLM for CPUs reads every attribute of every loaded module as it starts, and numba's llvmlite
    holds an object that claims to have any attribute there is.
    """
    found = sys.modules.pop(module, None)
    try:
        yield
    finally:
        if found is not None:
            sys.modules[module] = found


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
        self._restore: Callable[[], None] = lambda: None

    @property
    def replica(self) -> ReplicaInfo:
        if self._replica is None:
            raise EngineError("the engine is not running", remedy="Use it in a `with` block.")
        return self._replica

    def __enter__(self) -> Self:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._keep_settings()
        began_s, began_at = time.monotonic(), time.time()
        try:
            with captured_start_log() as said:
                self._engine = self._load()
            ready_at = time.time()
            self._answer_once()
            start_s = time.monotonic() - began_s
            parts = parse_start_log("\n".join(said), began_at, ready_at, time.time())
            self._replica = self._describe(start_s, parts)
        except Exception as error:
            self.__exit__()
            raise explain(f"{type(error).__name__}: {error}", self.variant) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def _keep_settings(self) -> None:
        """Take note of what vLLM for CPUs changes in its process for good, to give it back."""
        import torch

        affinity, threads = os.sched_getaffinity(0), torch.get_num_threads()
        set_threads = torch.set_num_threads

        def restore() -> None:
            os.sched_setaffinity(0, affinity)
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)

        self._restore = restore
        if not gpu_names():
            torch.set_num_threads(engine_threads())

    def _load(self) -> Any:
        import vllm
        from vllm.v1.engine.llm_engine import LLMEngine

        from workbench.measure.steplog import StepLogger

        if self.engine_args.load_format == "dummy":
            # vLLM asks plugins once in a process, and this may not be its first engine.
            dummies.fill_dummies()
            os.environ[dummies.VARIABLE] = "1"
        arguments = vllm.EngineArgs(**self._arguments())
        with _hidden("llvmlite.binding.ffi"):
            return LLMEngine.from_engine_args(
                arguments,
                stat_loggers=[
                    lambda config, index=0: StepLogger(config, index, sink=self._records.append)
                ],
            )

    def _arguments(self) -> dict[str, Any]:
        return {
            "model": self.variant.model,
            "revision": self.variant.revision,
            "enable_logging_iteration_details": True,
            **self.engine_args.kwargs(),
        }

    def _answer_once(self) -> None:
        refused = self.add(0, Request(scheduled_s=0.0, prompt_token_ids=[0], output_tokens=1))
        while refused is None and self._engine.has_unfinished_requests():
            self._engine.step()

    def _describe(self, start_s: float, parts: ColdStartParts) -> ReplicaInfo:
        from workbench.measure.steplog import describe

        described = describe(self._engine.vllm_config)
        return ReplicaInfo(**described, start_s=start_s, cold_start=parts)

    def __exit__(self, *exc: object) -> None:
        self._replica = None
        if self._engine is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            self._engine.engine_core.shutdown()
            self._engine = None
            gc.collect()
            cleanup_dist_env_and_memory()
        self._restore()

    def run(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Run:
        self._ledger = CacheLedger(self.replica.kv_capacity_tokens)
        self._seen: list[dict[str, Any]] = []
        self._records.clear()
        if self.engine_args.enable_prefix_caching:
            self._engine.reset_prefix_cache()
        try:
            run = drive(self, requests, concurrency=concurrency, on_progress=on_progress)
        except RuntimeError as error:  # out of memory, or a kernel that failed
            raise EngineError(
                f"vLLM died: {type(error).__name__}: {telling_line(str(error))}",
                remedy="Lower max_num_seqs, max_model_len or the memory of the KV cache.",
            ) from error
        return replace(run, cached_tokens=cached_tokens(self._seen))

    def ended(self) -> str | None:
        return None  # what ends it ends this process

    # -- Stepper ---------------------------------------------------------------------------------

    def now_s(self) -> float:
        return time.monotonic()

    def sleep_until(self, at_s: float) -> None:
        time.sleep(max(0.0, at_s - time.monotonic()))

    def add(self, request_id: int, request: Request) -> str | None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        length = len(request.prompt_token_ids) + request.output_tokens
        if length > self.engine_args.max_model_len:
            # Offline, vLLM would take it and answer with fewer tokens; a server refuses.
            return f"{length} tokens exceed max_model_len(={self.engine_args.max_model_len})"
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=request.output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = {"prompt_token_ids": list(request.prompt_token_ids)}
        try:
            self._engine.add_request(str(request_id), prompt, parameters)
        except ValueError as error:
            return str(error).splitlines()[0]
        return None

    def step(self) -> tuple[Step | None, list[Produced]]:
        outputs = self._engine.step()
        produced = [
            Produced(
                int(output.request_id),
                [token for completion in output.outputs for token in completion.token_ids],
                output.finished,
            )
            for output in outputs
        ]
        records = [record for record in self._records if "at" in record]
        self._records.clear()
        self._seen += records
        return (self._step_of(records[-1]) if records else None), produced

    def _step_of(self, record: dict[str, Any]) -> Step:
        return Step(
            t_s=nan,
            step_s=nan,
            gap_s=nan,
            prefill_requests=record["prefill_requests"],
            prefill_tokens=record["prefill_tokens"],
            decode_seqs=record["decode_seqs"],
            kv_tokens=self._ledger.tokens(record),
            running=record["running"],
            waiting=record["waiting"],
            preempted=record["preempted"],
        )
