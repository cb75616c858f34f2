"""The twin's engine makes the batches of vLLM's own Scheduler, on a clock of model steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.plan import EngineArgs
from simulations.engine import simulate_replica
from simulations.latency import LatencyModel
from simulations.traffic import Schedule
from tests.simulations.models import latency

BLOCK = 16


def vllm_scheduler(engine: EngineArgs, kv_blocks: int, model: str) -> Any:
    """A real Scheduler with one full-attention group; no weights, no device."""
    import torch
    from vllm.engine.arg_utils import EngineArgs as VllmArgs
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = VllmArgs(
        model=model,
        max_model_len=engine.max_model_len,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        enable_prefix_caching=False,
        enforce_eager=True,
        block_size=BLOCK,
        gpu_memory_utilization=0.3,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = kv_blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    return Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=kv_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
    )


def vllm_run(
    scheduler: Any, schedule: Schedule, model: LatencyModel
) -> tuple[dict[int, float], dict[int, float], int]:
    """First-token and end times of each request, and preemptions, on a virtual clock."""
    from vllm import SamplingParams
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    requests = [
        Request(
            request_id=str(i),
            prompt_token_ids=[7] * int(schedule.prompt_tokens[i]),
            sampling_params=SamplingParams(
                max_tokens=int(schedule.output_tokens[i]), ignore_eos=True
            ),
            pooling_params=None,
        )
        for i in range(len(schedule))
    ]
    first: dict[int, float] = {}
    end: dict[int, float] = {}
    now_s, sent = 0.0, 0
    while len(end) < len(requests):
        if sent == len(end):
            now_s = max(now_s, float(schedule.arrived_at_s[sent]))
        while sent < len(requests) and schedule.arrived_at_s[sent] <= now_s:
            scheduler.add_request(requests[sent])
            sent += 1
        output = scheduler.schedule()
        chosen = output.num_scheduled_tokens
        # After schedule() vLLM has already added the tokens of the step to num_computed_tokens.
        before = {i: requests[int(i)].num_computed_tokens - n for i, n in chosen.items()}
        decodes = [
            i
            for i in chosen
            if requests[int(i)].num_output_tokens and before[i] == requests[int(i)].num_tokens - 1
        ]
        prefill = [n for i, n in chosen.items() if i not in decodes]
        step_s = model.step_time_s(sum(prefill), len(decodes), sum(before[i] for i in decodes))
        now_s += float(step_s) + model.step_overhead_s
        sampled = [
            [9] if requests[int(i)].num_computed_tokens >= requests[int(i)].num_tokens else []
            for i in chosen
        ]
        scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=list(chosen),
                req_id_to_index={i: k for k, i in enumerate(chosen)},
                sampled_token_ids=sampled,
            ),
        )
        for i in chosen:
            if requests[int(i)].num_output_tokens:
                first.setdefault(int(i), now_s)
            if requests[int(i)].is_finished():
                end[int(i)] = now_s
    return first, end, sum(request.num_preemptions for request in requests)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("rate_rps", "max_seqs", "batched", "kv_blocks", "preempts"),
    [(5, 64, 256, 2000, False), (60, 16, 64, 60, True), (500, 40, 300, 150, True)],
)
def test_batches_are_those_of_vllm(
    rate_rps: float,
    max_seqs: int,
    batched: int,
    kv_blocks: int,
    preempts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    from workbench.model import shipped_checkpoint

    rng = np.random.default_rng(7)
    n = 300
    schedule = Schedule(
        np.cumsum(rng.exponential(1 / rate_rps, n)),
        rng.integers(1, 250, n),
        rng.integers(1, 250, n),
    )
    model = latency(
        floor_s=0.006, request_overhead_s=0.0, kv_blocks=kv_blocks, block_size_tokens=BLOCK
    )
    engine = EngineArgs(max_model_len=512, max_num_seqs=max_seqs, max_num_batched_tokens=batched)
    scheduler = vllm_scheduler(engine, kv_blocks, str(shipped_checkpoint()))
    first, end, preemptions = vllm_run(scheduler, schedule, model)
    found = simulate_replica(schedule, model, engine)
    assert (preemptions > 0) == preempts
    assert found["preemptions"].sum() == preemptions
    wanted_first = [first[i] for i in range(n)]
    wanted_end = [end[i] for i in range(n)]
    np.testing.assert_allclose(found["first_token_s"], wanted_first, rtol=1e-9)
    np.testing.assert_allclose(found["end_s"], wanted_end, rtol=1e-9)
