"""Plan -> alerts, what they are tried on, and what Prometheus scrapes.

The alerts are in serving/alerts.py: the simulated fleet evaluates the same.
"""

from __future__ import annotations

from typing import Any

from serving.alerts import ALERTS, ERROR_SHARE, LATENCY_LIMIT_S, Alert
from serving.manifests.names import GATEWAY_PORT, VLLM_PORT, Object, app_name, part_labels, pods_of
from serving.plan import Plan
from serving.promql import text
from serving.signals import SCRAPE_INTERVAL_S

SCRAPE_INTERVAL = f"{SCRAPE_INTERVAL_S}s"
MIN_SAMPLE = 300
"""Requests of a canary before it is judged."""


def prometheus_rule(plan: Plan) -> Object:
    """The rule groups as the Prometheus operator takes them, on the pods of the plan alone."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": app_name(plan), "labels": part_labels(plan)},
        "spec": rule_groups(pods_of(plan)),
    }


def rule_groups(scope: str = "") -> dict[str, Any]:
    """The alerts, over series that match; without a scope for a Prometheus that sees this plan alone."""
    rules = [rule(alert, scope) for alert in ALERTS]
    return {"groups": [{"name": "vllm-alerts", "interval": SCRAPE_INTERVAL, "rules": rules}]}


def rule(alert: Alert, scope: str) -> dict[str, Any]:
    """One alert as Prometheus has it."""
    found: dict[str, Any] = {"alert": alert.name, "expr": text(alert.expression, scope=scope)}
    if alert.for_s:
        found["for"] = f"{alert.for_s}s"
    return found | {
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.runbook,
            "runbook": f"runbooks/{alert.name}.md",
        },
    }


def scrape_config() -> dict[str, Any]:
    """Prometheus on one machine, beside the compose file's vLLM and gateway."""
    targets = {"vllm": f"vllm:{VLLM_PORT}", "gateway": f"gateway:{GATEWAY_PORT}"}
    return {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["127.0.0.1:9093"]}]}]},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target]}]}
            for job, target in targets.items()
        ],
    }


def canary_errors(scope: str) -> str:
    """Share of a canary's requests that fail; nothing below the least sample."""
    api = f'handler=~"/v1/.*",{scope}'
    failed = f'sum(increase(http_requests_total{{{api},status=~"5.*"}}[30m])) or vector(0)'
    return f"(({failed}) / {_asked(api)}) and on() ({_asked(api)} >= {MIN_SAMPLE})"


def canary_ttft(scope: str) -> str:
    """P99 time to the first token of a canary; nothing below the least sample."""
    api = f'handler=~"/v1/.*",{scope}'
    buckets = f"sum(rate(vllm:time_to_first_token_seconds_bucket{{{scope}}}[30m])) by (le)"
    return f"histogram_quantile(0.99, {buckets}) and on() ({_asked(api)} >= {MIN_SAMPLE})"


def canary_limits(plan: Plan) -> dict[str, Any]:
    """What a canary is held to."""
    return {"error_share": ERROR_SHARE, "ttft_limit_s": plan.slo.ttft_p99_s or LATENCY_LIMIT_S}


def _asked(api: str) -> str:
    return f"sum(increase(http_requests_total{{{api}}}[30m]))"
