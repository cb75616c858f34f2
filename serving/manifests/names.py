"""Names, labels and ports that the objects of a bundle find each other by."""

from __future__ import annotations

from typing import Any

from serving.plan import Plan

Object = dict[str, Any]
TRACKS = ("stable", "canary", "blue", "green")
"""Fleets that may stand beside each other behind one gateway."""
VLLM_PORT = 8000
GATEWAY_PORT = 8080
MONITORING = "monitoring"
"""The namespace of Prometheus."""
PROMETHEUS_URL = f"http://prometheus-operated.{MONITORING}.svc:9090"


def app_name(plan: Plan) -> str:
    """Name of everything that belongs to the plan's replicas."""
    return f"vllm-{plan.name}"


def fleet_name(plan: Plan, track: str) -> str:
    """Name of the replicas of one track."""
    return app_name(plan) if track == "stable" else f"{app_name(plan)}-{track}"


def gateway_name(plan: Plan) -> str:
    """Name of everything that belongs to the plan's gateway."""
    return f"gateway-{plan.name}"


def redis_name(plan: Plan) -> str:
    """Name of the Redis that the bundle can bring."""
    return f"redis-{plan.name}"


def part_labels(plan: Plan) -> dict[str, str]:
    """Label of every pod of the bundle."""
    return {"app.kubernetes.io/part-of": plan.name}


def vllm_labels(plan: Plan) -> dict[str, str]:
    """Labels that select the replicas of every track."""
    return _labels(plan, "vllm", app_name(plan))


def gateway_role(plan: Plan) -> dict[str, str]:
    """Labels of every gateway that may reach the replicas."""
    return {"app.kubernetes.io/component": "gateway", **part_labels(plan)}


def gateway_labels(plan: Plan) -> dict[str, str]:
    """Labels that select the gateway's pods."""
    return _labels(plan, "gateway", gateway_name(plan)) | gateway_role(plan)


def redis_labels(plan: Plan) -> dict[str, str]:
    """Labels that select the bundle's own Redis."""
    return _labels(plan, "redis", redis_name(plan))


def pods_of(plan: Plan) -> str:
    """Matcher of the pods of every track, and of the GPUs they hold."""
    tracks = "|".join(track for track in TRACKS if track != "stable")
    return f'pod=~"{app_name(plan)}(-({tracks}))?-[a-z0-9]+-[a-z0-9]+"'


def pods_of_stable(plan: Plan) -> str:
    """Matcher of the pods of the track `stable` alone."""
    return f'pod=~"{app_name(plan)}-[a-z0-9]+-[a-z0-9]+"'


def _labels(plan: Plan, name: str, instance: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": name,
        "app.kubernetes.io/instance": instance,
        **part_labels(plan),
    }
