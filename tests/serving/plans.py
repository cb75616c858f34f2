"""Plans for the tests of what is rendered from them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    Behavior,
    ExternalMetric,
    HpaSpec,
    Metric,
    MetricIdentifier,
    ScalingPolicy,
    ScalingRules,
    Target,
    pods_metric,
    quantity,
)
from serving.plan import EngineArgs, Plan, Slo, Variant

NAMES = [REQUESTS_RUNNING, REQUESTS_WAITING, KV_CACHE_USAGE, GPU_UTILISATION, TTFT_MEAN]


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "winner",
        "variant": Variant(name="int8", model="model"),
        "engine": EngineArgs(),
        "slo": Slo(),
        "hpa": HpaSpec(max_replicas=8, metrics=(pods_metric(REQUESTS_RUNNING, 8),)),
    }
    return Plan(**(values | changes))


def external_metric(name: str, average: float) -> Metric:
    target = Target(type="AverageValue", average_value=quantity(average))
    source = ExternalMetric(metric=MetricIdentifier(name=name), target=target)
    return Metric(type="External", external=source)


def _made(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Instances of a pydantic class (`st.builds` would name fields by their aliases)."""
    return st.fixed_dictionaries(fields).map(lambda drawn: kind(**drawn))


_values = st.floats(0.01, 100)
_metrics = st.builds(pods_metric, st.sampled_from(NAMES), _values) | st.builds(
    external_metric, st.sampled_from(NAMES), _values
)
_policies = _made(
    ScalingPolicy,
    type=st.sampled_from(["Pods", "Percent"]),
    value=st.integers(1, 100),
    period_seconds=st.integers(1, 1800),
)
_rules = st.none() | _made(
    ScalingRules,
    stabilization_window_seconds=st.none() | st.integers(0, 3600),
    select_policy=st.sampled_from([None, "Max", "Min", "Disabled"]),
    policies=st.none() | st.lists(_policies, min_size=1, max_size=2).map(tuple),
    tolerance=st.none() | st.floats(0, 1).map(quantity),
)
specs = _made(
    HpaSpec,
    min_replicas=st.integers(1, 3),
    max_replicas=st.integers(3, 50),
    metrics=st.lists(_metrics, min_size=1, max_size=3).map(tuple),
    behavior=st.none() | _made(Behavior, scale_up=_rules, scale_down=_rules),
)
_engines = _made(
    EngineArgs,
    max_model_len=st.integers(1, 10**6),
    max_num_seqs=st.integers(1, 64),
    max_num_batched_tokens=st.integers(64, 8192),
    enable_prefix_caching=st.booleans(),
    kv_cache_memory_bytes=st.none() | st.integers(1, 2**36),
    dtype=st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
    enforce_eager=st.booleans(),
)
_variants = _made(
    Variant,
    name=st.from_regex(r"[a-z0-9][a-z0-9.-]*", fullmatch=True),
    model=st.just("org/model"),
    revision=st.none() | st.from_regex(r"[0-9a-f]{40}", fullmatch=True),
)
_fleets = specs.map(lambda spec: {"hpa": spec}) | st.integers(1, 99).map(
    lambda n: {"hpa": None, "replicas": n}
)
plans = st.builds(
    lambda name, variant, engine, fleet: plan(name=name, variant=variant, engine=engine, **fleet),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True),
    _variants,
    _engines,
    _fleets,
)
