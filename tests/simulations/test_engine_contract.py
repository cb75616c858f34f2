"""The twin's engine makes the steps of vLLM's own Scheduler, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulations.engine import SchedulerOptions, trace_replica
from simulations.engine.reference import reference_replica
from simulations.traffic import Schedule
from tests.simulations.engine_cases import FEATURES, Case, cases
from tests.simulations.models import latency

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")


def assert_like_vllm(case: Case) -> None:
    from tests.simulations.vllm_core import vllm_steps

    wanted, times = vllm_steps(case)
    found, steps = reference_replica(
        case.schedule, case.latency, case.options, concurrency=case.concurrency
    )
    for k, (real, step) in enumerate(zip(wanted, steps, strict=False)):
        ours = {
            "tokens": {request.index: tokens for request, tokens in step.tokens.items()},
            "preemptions": step.preemptions,
            "hit_tokens": step.hit_tokens,
            "blocks_used": step.blocks_used,
        }
        assert ours == real, f"step {k}"
    assert len(steps) == len(wanted)
    for name, times_s in times.items():
        np.testing.assert_allclose(found[name], times_s, rtol=1e-9)


ONE_BY_ONE = [frozenset[str](), *(frozenset({feature}) for feature in sorted(FEATURES)), FEATURES]


@pytest.mark.parametrize("features", ONE_BY_ONE, ids=lambda chosen: "+".join(sorted(chosen)) or "-")
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_steps_are_those_of_vllm(features: frozenset[str], data: st.DataObject) -> None:
    chosen = features | {"caching"} if "turns" in features else features
    assert_like_vllm(data.draw(cases(frozenset(chosen))))


def test_a_preemption_that_leaves_nothing_to_do() -> None:
    """Of equals by priority and arrival the first is preempted, here by itself: no step is made of it."""
    case = Case(
        Schedule(
            np.zeros(7),
            prompt_tokens=np.array([1, 1, 1, 1, 1, 1, 2]),
            output_tokens=np.array([1, 1, 1, 1, 2, 6, 4]),
            priority=np.zeros(7, np.int64),
        ),
        latency(kv_blocks=10, block_size_tokens=1, request_overhead_s=0.0),
        SchedulerOptions(max_seqs=2, max_step_tokens=3, block_size=1, priority=True),
    )
    assert_like_vllm(case)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_the_compiled_core_makes_them_too(case: Case) -> None:
    """Straight from vLLM to the compiled core: the reference stands between them elsewhere."""
    from tests.simulations.vllm_core import vllm_steps

    wanted, _ = vllm_steps(case)
    _, steps, pairs = trace_replica(
        case.schedule, case.latency, case.options, concurrency=case.concurrency
    )
    made = [dict(zip(g["request"], g["tokens"], strict=True)) for _, g in pairs.groupby("step")]
    assert made == [real["tokens"] for real in wanted]
    assert list(steps["blocks_used"]) == [real["blocks_used"] for real in wanted]
    assert list(steps["hit_tokens"]) == [real["hit_tokens"] for real in wanted]
