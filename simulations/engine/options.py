"""What the scheduler of one replica may do: the engine's arguments, and what its version of vLLM does.

Every difference between the supported versions is an option with a name; the version only picks
their values.
"""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field

from serving.plan import EngineArgs
from serving.values import Value
from simulations.latency import LatencyModel


class SchedulerOptions(Value):
    """One replica's scheduler."""

    max_seqs: int = Field(gt=0)
    max_step_tokens: int = Field(gt=0)
    block_size: int = Field(16, gt=0)
    chunked_prefill: bool = True
    long_prefill_tokens: int = Field(0, ge=0)
    priority: bool = False
    """Serve by (priority, time of arrival) instead of first come, first served."""
    prefix_caching: bool = False
    async_scheduling: bool = False
    """Decide a step while the one before it computes."""
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    watermark_blocks: int = Field(0, ge=0)
    """Blocks that an admission leaves free while something runs."""
    reserve_whole_prompt: bool = True
    """Admission wants blocks for all that is to be computed, not for the first chunk only."""
    lone_prefill_uncapped: bool = True
    """long_prefill_tokens does not bind a request that is alone. From 0.31 on
    (scheduler.py, `num_eligible_reqs`)."""
    self_preemption_ends_step: bool = True
    """A request that preempts itself by priority leaves nothing to those behind it. Until 0.32
    (scheduler.py, the `break` after `allocate_slots`)."""
    unscheduled_victim_skips_next: bool = False
    """Preempting by priority a request that this step had passed over makes it pass over the one
    behind the preempting too. Until 0.27 (scheduler.py, `req_index`)."""

    @classmethod
    def of(cls, engine: EngineArgs, latency: LatencyModel) -> Self:
        """As the engine runs: its arguments, and what was measured where they leave it to vLLM."""
        measured = latency.async_scheduling
        chosen = engine.async_scheduling
        reserve = engine.scheduler_reserve_full_isl
        return cls(
            max_seqs=engine.max_num_seqs,
            max_step_tokens=engine.max_num_batched_tokens,
            block_size=latency.block_size_tokens,
            chunked_prefill=engine.enable_chunked_prefill is not False,
            long_prefill_tokens=engine.long_prefill_token_threshold or 0,
            priority=engine.scheduling_policy == "priority",
            prefix_caching=engine.enable_prefix_caching,
            async_scheduling=measured if chosen is None else chosen,
            max_queued_requests=engine.max_num_queued_reqs,
            max_queued_tokens=engine.max_num_queued_tokens,
            watermark_blocks=int((engine.watermark or 0.0) * latency.kv_blocks),
            reserve_whole_prompt=reserve is not False,
        ).at(latency.engine_version)

    def at(self, version: str) -> Self:
        """The same on a version of vLLM from 0.26 to 0.33; "" and others are taken for 0.32.

        Source:  the schedulers of all eight, compared and run on the same requests: by default they
                 make the same steps.
        """
        found = re.match(r"0\.(\d+)", version)
        minor = int(found.group(1)) if found else 32
        return self.model_copy(
            update={
                "lone_prefill_uncapped": minor >= 31,
                "self_preemption_ends_step": minor <= 32,
                "unscheduled_victim_skips_next": minor <= 27,
            }
        )
