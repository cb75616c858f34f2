"""The HorizontalPodAutoscaler, `autoscaling/v2`: what is simulated is what is applied.

names.py       metrics that a fleet has          quantity.py   Kubernetes' numbers
spec.py        the spec, field by field          validation.py what the API server would refuse
manifest.py    the whole object, YAML in and the same YAML out
"""

from serving.hpa.manifest import HorizontalPodAutoscaler
from serving.hpa.names import (
    E2E_MEAN,
    E2E_P99,
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_PER_SECOND,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    TTFT_P99,
)
from serving.hpa.quantity import Quantity, approximate, milli, quantity
from serving.hpa.spec import (
    UNCHECKED,
    Behavior,
    ContainerResourceMetric,
    ExternalMetric,
    HpaSpec,
    Metric,
    MetricIdentifier,
    ObjectMetric,
    ObjectReference,
    PodsMetric,
    ResourceMetric,
    ScalingPolicy,
    ScalingRules,
    Target,
    pods_metric,
)
from serving.hpa.validation import refusals

__all__ = [
    "E2E_MEAN",
    "E2E_P99",
    "GPU_UTILISATION",
    "KV_CACHE_USAGE",
    "REQUESTS_PER_SECOND",
    "REQUESTS_RUNNING",
    "REQUESTS_WAITING",
    "TTFT_MEAN",
    "TTFT_P99",
    "UNCHECKED",
    "Behavior",
    "ContainerResourceMetric",
    "ExternalMetric",
    "HorizontalPodAutoscaler",
    "HpaSpec",
    "Metric",
    "MetricIdentifier",
    "ObjectMetric",
    "ObjectReference",
    "PodsMetric",
    "Quantity",
    "ResourceMetric",
    "ScalingPolicy",
    "ScalingRules",
    "Target",
    "approximate",
    "milli",
    "pods_metric",
    "quantity",
    "refusals",
]
