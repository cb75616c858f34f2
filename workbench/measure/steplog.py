"""The step logger that vLLM loads: what each engine step did, as vLLM says it.

It is registered as a `vllm.stat_logger_plugins` entry point, so every vLLM server of this environment
loads it; it is inert unless WORKBENCH_STEP_LOG names a file. Reading the log is in steps.py, which
needs no vLLM.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

STEP_LOG_VARIABLE = "WORKBENCH_STEP_LOG"
_FLUSH_EVERY_S = 0.2

Sink = Callable[[dict[str, Any]], None]


class StepLogger(StatLoggerBase):  # type: ignore[misc]
    """One record per engine step that scheduled something; the first one describes the engine.

    Args:    sink: takes each record; None writes JSON lines to the file in WORKBENCH_STEP_LOG.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0, sink: Sink | None = None) -> None:
        self._config = vllm_config
        self._began = False
        path = os.environ.get(STEP_LOG_VARIABLE)
        if sink is None and path and engine_index == 0:
            sink = _Lines(path)
        self._sink = sink

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        now = time.monotonic()
        if self._sink is None or scheduler_stats is None:
            return
        details = scheduler_stats.iteration_details
        if details is None or details.is_dummy:
            return
        if not self._began:
            self._began = True
            self._sink(describe(self._config))
        finished = iteration_stats.finished_requests if iteration_stats else []
        intervals = iteration_stats.inter_token_latencies_iter if iteration_stats else []
        self._sink(
            {
                "at": now,
                "prefill_requests": details.num_ctx_requests,
                "prefill_tokens": details.num_ctx_tokens,
                "decode_seqs": details.num_generation_requests,
                "decode_tokens": details.num_generation_tokens,
                "running": scheduler_stats.num_running_reqs,
                "waiting": scheduler_stats.num_waiting_reqs
                + scheduler_stats.num_skipped_waiting_reqs,
                "kv_usage": scheduler_stats.kv_cache_usage,
                "elapsed_ms": details.elapsed_ms,
                # The engine's own clock: since the previous token of a sequence that was decoding.
                "period_s": min(intervals, default=None),
                "cached_tokens": scheduler_stats.prefix_cache_stats.hits,
                "preempted": iteration_stats.num_preempted_reqs if iteration_stats else 0,
                # [tokens in the cache, schedule to first token, first to last token]
                "finished": [
                    [
                        f.num_prompt_tokens + f.num_generation_tokens - 1,
                        f.prefill_time,
                        f.decode_time,
                    ]
                    for f in finished
                ],
            }
        )

    def log_engine_initialized(self) -> None:
        """Nothing to do: the engine is described with its first step, when all is known of it."""


def describe(vllm_config: Any) -> dict[str, Any]:
    """The engine as it runs, in the terms of `ReplicaInfo`."""
    import vllm

    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    return {
        "engine_version": vllm.__version__,
        "kv_blocks": cache.num_gpu_blocks,
        "block_size_tokens": cache.block_size,
        "async_scheduling": bool(scheduler.async_scheduling),
    }


class _Lines:
    """JSON lines to a file, written when the engine idles and at least every 0.2 s while it is busy."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lines: list[str] = []
        self._written_s = time.monotonic()
        atexit.register(self._write)

    def __call__(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps(record) + "\n")
        now = time.monotonic()
        idle = record.get("running", 0) + record.get("waiting", 0) == 0
        if idle or now - self._written_s >= _FLUSH_EVERY_S:
            self._written_s = now
            self._write()

    def _write(self) -> None:
        if self._lines:
            os.write(self._descriptor, "".join(self._lines).encode())
            self._lines.clear()
