"""Plan -> the rules behind its metrics, and the alerts.

The Resource metric type carries cpu and memory only, so a metric of vLLM or of a GPU reaches the
autoscaler through the adapter's rules here. vLLM's names hold a colon, which Kubernetes does not take.
What a metric means, and the windows of the alerts, are those of the simulated fleet.

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
}
_SUMMED = (REQUESTS_RUNNING, REQUESTS_WAITING)
_TTFT = "vllm:time_to_first_token_seconds"
_SCRAPE_INTERVAL = "15s"


def adapter_rules(plan: Plan) -> dict[str, Any]:
    """Values of the prometheus-adapter chart: a rule for each metric the autoscaler reads.

    `Object` metrics are the business of whoever owns the object; `Resource` needs none.
    """
    metrics = plan.hpa.metrics if plan.hpa else ()
    pods = sorted({m.pods.metric.name for m in metrics if m.pods})
    external = sorted({m.external.metric.name for m in metrics if m.external})
    rules: dict[str, Any] = {"default": False, "custom": [_pods_rule(name) for name in pods]}
    if external:
        rules["external"] = [_external_rule(name, plan) for name in external]
    return {"rules": rules}


def _pods_rule(name: str) -> dict[str, Any]:
    """Mean over the series of a pod (its engines, its GPUs)."""
    return {
        "seriesQuery": f'{_SOURCES.get(name, name)}{{namespace!="",pod!=""}}',
        "resources": {
            "overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
        },
        "name": {"as": name},
        "metricsQuery": "avg(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    }


def _external_rule(name: str, plan: Plan) -> dict[str, Any]:
    """One value over the pods of the plan: requests are summed, shares are averaged."""
    scope = _pods_of(plan)
    over_all = f"<<.Series>>{{<<.LabelMatchers>>,{scope}}}"
    query = f"{'sum' if name in _SUMMED else 'avg'}({over_all})"
    if name == TTFT_MEAN:
        query = " / ".join(
            f"sum(rate({_TTFT}_{part}{{<<.LabelMatchers>>,{scope}}}[1m]))"
            for part in ("sum", "count")
        )
    return {
        "seriesQuery": f'{_SOURCES.get(name, name)}{{namespace!="",{scope}}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}}},
        "name": {"as": name},
        "metricsQuery": query,
    }


def _pods_of(plan: Plan) -> str:
    """Matcher of the pods of the plan's Deployment, and of the GPUs they hold."""
    return f'pod=~"{app_name(plan)}-[a-z0-9]+-[a-z0-9]+"'


def prometheus_rule(plan: Plan) -> dict[str, Any]:
    """The rule groups as the Prometheus operator takes them, on the pods of the plan alone."""
    return _custom("PrometheusRule", plan, _groups(_pods_of(plan)))


def rule_groups(plan: Plan) -> dict[str, Any]:
    """The same as a file, for a Prometheus that sees nothing but this plan."""
    return _groups("")


def service_monitor(plan: Plan) -> dict[str, Any]:
    """Has the Prometheus operator scrape every replica, as often as was simulated."""
    endpoint = {"port": "http", "path": "/metrics", "interval": _SCRAPE_INTERVAL}
    selector = {"matchLabels": labels(plan)}
    return _custom("ServiceMonitor", plan, {"selector": selector, "endpoints": [endpoint]})


def _custom(kind: str, plan: Plan, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": kind,
        "metadata": {"name": app_name(plan), "labels": labels(plan)},
        "spec": spec,
    }


def scrape_config() -> dict[str, Any]:
    """Prometheus on one machine, beside the compose file's vLLM."""
    job = {"job_name": "vllm", "static_configs": [{"targets": ["vllm:8000"]}]}
    return {
        "global": {"scrape_interval": _SCRAPE_INTERVAL, "evaluation_interval": _SCRAPE_INTERVAL},
        "rule_files": ["rules.yml"],
        "scrape_configs": [job],
    }


def _groups(scope: str) -> dict[str, Any]:
    """The recording rule of the mean TTFT and the alerts, over series that match."""
    # A replica without a first token in the last minute has no mean, rather than one of 0 / 0.
    recorded = {
        "record": TTFT_MEAN,
        "expr": f"rate({_of(f'{_TTFT}_sum', scope)}[1m])"
        f" / (rate({_of(f'{_TTFT}_count', scope)}[1m]) > 0)",
    }
    return {
        "groups": [
            {"name": "vllm-records", "interval": _SCRAPE_INTERVAL, "rules": [recorded]},
            {"name": "vllm-alerts", "interval": _SCRAPE_INTERVAL, "rules": _alerts(scope)},
        ]
    }


def _of(metric: str, *matchers: str) -> str:
    """PromQL of the series of a metric."""
    kept = ",".join(matcher for matcher in matchers if matcher)
    return f"{metric}{{{kept}}}" if kept else metric


def _alerts(scope: str) -> list[dict[str, Any]]:
    ttft_sum, ttft_count = _of(f"{_TTFT}_sum", scope), _of(f"{_TTFT}_count", scope)
    buckets = _of(f"{_TTFT}_bucket", scope)
    used, free = _of("DCGM_FI_DEV_FB_USED", scope), _of("DCGM_FI_DEV_FB_FREE", scope)
    kv_usage = _of(_SOURCES[KV_CACHE_USAGE], scope)
    finished = _of("vllm:request_success_total", scope)
    return [
        _alert(
            "LatencyMeanHigh",
            f"sum(rate({ttft_sum}[1m])) / sum(rate({ttft_count}[1m])) > 0.5",
            summary="Mean time to first token is above 500 ms.",
            runbook="Look at vllm:num_requests_waiting: if it grows and the autoscaler is at"
            " maxReplicas, raise it; if new replicas are pending, free GPUs.",
        ),
        _alert(
            "LatencyP99High",
            f"histogram_quantile(0.99, sum(rate({buckets}[5m])) by (le)) > 0.5",
            summary="P99 time to first token is above 500 ms.",
            runbook="If the mean is low, look for long prompts and for one slow replica; else as for"
            " LatencyMeanHigh.",
        ),
        _alert(
            "GpuUtilisationHigh",
            f"avg({_of(GPU_UTILISATION, scope)}) > 85",
            lasting="5m",
            summary="GPUs have been busy above 85 % for 5 minutes.",
            runbook="Act only if latency is high too: a GPU counts as busy with a single request.",
        ),
        _alert(
            "GpuMemoryHigh",
            f"avg({used} / ({used} + {free})) > 0.85 and on() avg({kv_usage}) > 0.85",
            lasting="5m",
            summary="GPU memory and KV cache have been above 85 % for 5 minutes.",
            runbook="Requests will wait or be recomputed: add replicas or shorten contexts.",
        ),
        _alert(
            "ErrorsHigh",
            _error_share(scope, finished),
            summary="More than 1 % of the requests fail or time out.",
            runbook="Read the pods' logs and restarts; after a rollout, undo it. Aborts are clients"
            " that gave up: check latency and their time limits.",
        ),
        _alert(
            "RequestsDropped",
            f"(sum(rate({finished}[5m])) or vector(0)) < 0.8 * sum(rate({finished}[5m] offset 5m))",
            summary="Request volume fell by more than 20 % within 5 minutes.",
            runbook="Check the gateway, DNS and the replicas' readiness. At few requests a fall of"
            " 20 % is chance.",
        ),
    ]


def _error_share(scope: str, finished: str) -> str:
    """Answers that begin with an error, or streams that end with one: vLLM counts them apart."""
    failed = _of("vllm:request_success_total", scope, 'finished_reason=~"abort|error"')
    path = 'handler=~"/v1/.*"'
    answers = _of("http_requests_total", scope, path)
    refused = _of("http_requests_total", scope, path, 'status=~"5.*"')
    return (
        f"sum(rate({refused}[5m])) / sum(rate({answers}[5m])) > 0.01"
        f" or sum(rate({failed}[5m])) / sum(rate({finished}[5m])) > 0.01"
    )


def _alert(
    name: str, expression: str, *, summary: str, runbook: str, lasting: str | None = None
) -> dict[str, Any]:
    alert: dict[str, Any] = {"alert": name, "expr": expression}
    if lasting is not None:
        alert["for"] = lasting
    return alert | {
        "labels": {"severity": "page"},
        "annotations": {"summary": summary, "runbook": runbook},
    }
