"""What the exported gateway is told: by base/gateway/settings.json, and by its environment."""

from __future__ import annotations

import hashlib
from typing import Any

from serving.manifests.names import TRACKS, VLLM_PORT, fleet_name
from serving.plan import Plan

API_KEYS = "/etc/gateway-keys/api-keys.json"
# Endpoints are told slowly; then streams may end. Kubernetes must wait longer than both together.
DRAIN_DELAY_S, DRAIN_S = 10, 60
GRACE_S = DRAIN_DELAY_S + DRAIN_S + 15


def settings(plan: Plan, weights: str) -> dict[str, Any]:
    """What is the same wherever the gateway runs; where things are is its environment's to say.

    Args:    weights: digest of the model that the bundle carries, "" for one of a hub.
    """
    return {
        "model": plan.variant.name,
        "revision": plan.variant.revision or revision_of(plan, weights),
        "spec": plan.gateway.model_dump(mode="json"),
        "timeouts": {"drain_delay_s": DRAIN_DELAY_S, "drain_s": DRAIN_S},
    }


def tracks(plan: Plan) -> dict[str, list[str]]:
    """Where the replicas of each track are in a cluster: every address of a headless Service."""
    return {t: [f"dns+http://{fleet_name(plan, t)}:{VLLM_PORT}"] for t in TRACKS}


def revision_of(plan: Plan, weights: str) -> str:
    """What tells a local model from another of its name, so that no cached answer is another's."""
    said = plan.variant.model_dump_json() + plan.engine.model_dump_json() + weights
    return hashlib.sha256(said.encode()).hexdigest()[:16]
