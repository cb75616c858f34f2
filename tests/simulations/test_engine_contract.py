"""The twin's engine makes the steps of vLLM's own Scheduler, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulations.engine import trace_replica
from simulations.engine.reference import reference_replica
from tests.simulations.engine_cases import FEATURES, Case, cases

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
    preemptions = np.cumsum([step.preempted for step in steps])
    for k, (real, step) in enumerate(zip(wanted, steps, strict=False)):
        ours = {
            "tokens": {request.index: tokens for request, tokens in step.tokens.items()},
            "preemptions": preemptions[k],
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
