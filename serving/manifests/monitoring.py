"""Plan -> the rules behind its metrics, and the alerts.

The Resource metric type carries cpu and memory only, so a metric of vLLM or of a GPU reaches the
autoscaler through the adapter's rules here. vLLM's names hold a colon, which Kubernetes does not take.

The article's alerts are literal but for two things, since they would fire for ever: 500 ms binds to the
time to the first token (a whole answer takes longer), and GPU memory above 85 % counts only together
with a KV cache above 85 % (vLLM reserves the memory at its start).
"""

from __future__ import annotations

from typing import Any

from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
)
from serving.manifests.kubernetes import app_name, labels
from serving.plan import Plan

_SOURCES = {
    REQUESTS_RUNNING: "vllm:num_requests_running",
    REQUESTS_WAITING: "vllm:num_requests_waiting",
    KV_CACHE_USAGE: "vllm:kv_cache_usage_perc",
    GPU_UTILISATION: "DCGM_FI_DEV_GPU_UTIL",
    TTFT_MEAN: "vllm_ttft_mean_seconds",
}
_TTFT = "vllm:time_to_first_token_seconds"


def adapter_rules(plan: Plan) -> dict[str, Any]:
    """Values of the prometheus-adapter chart: a rule for each Pods metric the autoscaler reads."""
    names = [m.pods.metric.name for m in plan.hpa.metrics if m.pods] if plan.hpa else []
    return {"rules": {"default": False, "custom": [_adapter_rule(name) for name in names]}}


def _adapter_rule(name: str) -> dict[str, Any]:
    return {
        "seriesQuery": f'{_SOURCES.get(name, name)}{{namespace!="",pod!=""}}',
        "resources": {
            "overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
        },
        "name": {"as": name},
        "metricsQuery": "avg(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    }


def rule_groups(plan: Plan) -> dict[str, Any]:
    """Prometheus rule groups: the recording rule of the mean TTFT, and the alerts."""
    recorded = {
        "record": TTFT_MEAN,
        "expr": f"rate({_TTFT}_sum[1m]) / rate({_TTFT}_count[1m])",
    }
    return {
        "groups": [
            {"name": "vllm-records", "rules": [recorded]},
            {"name": "vllm-alerts", "rules": [_alert(*row) for row in _ALERTS]},
        ]
    }


_FINISHED = "vllm:request_success_total"
_ALERTS = [
    (
        "LatencyMeanHigh",
        f"sum(rate({_TTFT}_sum[5m])) / sum(rate({_TTFT}_count[5m])) > 0.5",
        "1m",
        "Mean time to first token is above 500 ms.",
    ),
    (
        "LatencyP99High",
        f"histogram_quantile(0.99, sum(rate({_TTFT}_bucket[5m])) by (le)) > 0.5",
        "1m",
        "P99 time to first token is above 500 ms.",
    ),
    (
        "GpuUtilisationHigh",
        "avg(DCGM_FI_DEV_GPU_UTIL) > 85",
        "5m",
        "GPUs have been busy above 85 % for 5 minutes.",
    ),
    (
        "GpuMemoryHigh",
        "avg(DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)) > 0.85"
        " and on() avg(vllm:kv_cache_usage_perc) > 0.85",
        "5m",
        "GPU memory and KV cache have been above 85 % for 5 minutes.",
    ),
    (
        "ErrorsHigh",
        f'sum(rate({_FINISHED}{{finished_reason=~"abort|error"}}[5m]))'
        f" / sum(rate({_FINISHED}[5m])) > 0.01",
        "1m",
        "More than 1 % of the requests fail or time out.",
    ),
    (
        "RequestsDropped",
        f"sum(rate({_FINISHED}[5m])) < 0.8 * sum(rate({_FINISHED}[5m] offset 10m))",
        "2m",
        "Request volume fell by more than 20 % within 10 minutes.",
    ),
]


def _alert(name: str, expression: str, lasting: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": "page"},
        "annotations": {"summary": summary},
    }


def prometheus_rule(plan: Plan) -> dict[str, Any]:
    """The rule groups as the Prometheus operator takes them."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": app_name(plan), "labels": labels(plan)},
        "spec": rule_groups(plan),
    }


def scrape_config() -> dict[str, Any]:
    """Prometheus on one machine, beside the compose file's vLLM."""
    job = {"job_name": "vllm", "static_configs": [{"targets": ["vllm:8000"]}]}
    return {
        "global": {"scrape_interval": "15s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [job],
    }
