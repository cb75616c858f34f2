"""The autoscaler as it was simulated, what brings it its metrics, and KEDA in place of both.

The Resource metric type carries cpu and memory only, so a metric of vLLM or of a GPU reaches the
autoscaler through the adapter's rules here. vLLM's names hold a colon, which Kubernetes does not take.
What a metric means is in serving/signals.py: the simulated fleet reads the same.
"""

from __future__ import annotations

from typing import Any

from serving.hpa import Metric, approximate
from serving.manifests.names import (
    PROMETHEUS_URL,
    Object,
    app_name,
    pods_of,
    pods_of_stable,
    vllm_labels,
)
from serving.plan import Plan
from serving.promql import Aggregate, text
from serving.signals import SIGNALS


def autoscaler(plan: Plan) -> Object | None:
    """The HorizontalPodAutoscaler exactly as it was simulated; None for a static fleet."""
    if plan.hpa is None:
        return None
    manifest = plan.hpa.manifest(app_name(plan), app_name(plan))
    manifest["metadata"]["labels"] = vllm_labels(plan)
    return manifest


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
    signal, scope = SIGNALS.get(name), pods_of(plan)
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


def keda_can(plan: Plan) -> bool:
    """Whether KEDA can ask for the plan's metrics: it knows no metric of a pod's resources or object."""
    return plan.hpa is not None and all(m.pods or m.external for m in plan.hpa.effective_metrics)


def scaled_object(plan: Plan) -> Object:
    """KEDA in place of adapter and HPA: the same queries, targets, limits and behaviour.

    KEDA asks for one value and divides it by the replicas, so that a mean over pods is asked for as their
    sum. It was not simulated.
    """
    assert plan.hpa is not None
    assert keda_can(plan)
    spec = plan.hpa.model_dump(mode="json", by_alias=True)
    behavior = spec.get("behavior")
    advanced = {"horizontalPodAutoscalerConfig": {"behavior": behavior}} if behavior else {}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": app_name(plan), "labels": vllm_labels(plan)},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": app_name(plan),
            },
            "minReplicaCount": plan.hpa.min_replicas,
            "maxReplicaCount": plan.hpa.max_replicas,
            "pollingInterval": 15,
            **({"advanced": advanced} if advanced else {}),
            "triggers": [_trigger(metric, plan) for metric in plan.hpa.metrics],
        },
    }


def _trigger(metric: Metric, plan: Plan) -> dict[str, Any]:
    source = metric.pods or metric.external
    assert source is not None
    name, target = source.metric.name, source.target
    threshold = target.average_value if target.average_value is not None else target.value
    assert threshold is not None
    return {
        "type": "prometheus",
        "metricType": "AverageValue" if target.average_value is not None else "Value",
        "metadata": {
            "serverAddress": PROMETHEUS_URL,
            "query": _query(name, pods_of_stable(plan), per_pod=metric.pods is not None),
            "threshold": f"{approximate(threshold):.12g}",
        },
    }


def _query(name: str, scope: str, *, per_pod: bool) -> str:
    signal = SIGNALS.get(name)
    if signal is None:
        averaged = f"avg({name}{{{scope}}})"
        return f"sum({averaged} by (pod))" if per_pod else averaged
    return text(Aggregate("sum", signal.per_pod) if per_pod else signal.total, scope=scope)
