"""Plan -> the rules behind its metrics, and the alerts.

The Resource metric type carries cpu and memory only, so a metric of vLLM or of a GPU reaches the
autoscaler through the adapter's rules here. vLLM's names hold a colon, which Kubernetes does not take.
What a metric means is in serving/signals.py, the alerts are in serving/alerts.py: the simulated fleet
reads the same.
"""

from __future__ import annotations

from typing import Any

from serving.alerts import ALERTS, Alert
from serving.manifests.kubernetes import app_name, labels
from serving.plan import Plan
from serving.promql import text
from serving.signals import SCRAPE_INTERVAL_S, SIGNALS

_SCRAPE_INTERVAL = f"{SCRAPE_INTERVAL_S}s"


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
    """The metric of each pod; one that is no signal of ours is averaged over the pod's series."""
    signal = SIGNALS.get(name)
    query = "avg(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)"
    if signal is not None:
        query = text(signal.per_pod, scope="<<.LabelMatchers>>", pod="<<.GroupBy>>")
    return {
        "seriesQuery": f'{name if signal is None else signal.source}{{namespace!="",pod!=""}}',
        "resources": {
            "overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}
        },
        "name": {"as": name},
        "metricsQuery": query,
    }


def _external_rule(name: str, plan: Plan) -> dict[str, Any]:
    """One value over the pods of the plan."""
    signal, scope = SIGNALS.get(name), _pods_of(plan)
    matchers = f"<<.LabelMatchers>>,{scope}"
    query = f"avg(<<.Series>>{{{matchers}}})"
    if signal is not None:
        query = text(signal.total, scope=matchers)
    return {
        "seriesQuery": f'{name if signal is None else signal.source}{{namespace!="",{scope}}}',
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
    """The alerts, over series that match."""
    rules = [_rule(alert, scope) for alert in ALERTS]
    return {"groups": [{"name": "vllm-alerts", "interval": _SCRAPE_INTERVAL, "rules": rules}]}


def _rule(alert: Alert, scope: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"alert": alert.name, "expr": text(alert.expression, scope=scope)}
    if alert.for_s:
        rule["for"] = f"{alert.for_s}s"
    return rule | {
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": alert.runbook},
    }
