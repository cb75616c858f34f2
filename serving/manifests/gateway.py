"""What the exported gateway is told: base/gateway/settings.json."""

from __future__ import annotations

import hashlib
from typing import Any

from serving.manifests.names import GATEWAY_PORT, TRACKS, VLLM_PORT, fleet_name
from serving.plan import Plan

API_KEYS = "/etc/gateway-keys/api-keys.json"
# Endpoints are told slowly; then streams may end. Kubernetes must wait longer than both together.
DRAIN_DELAY_S, DRAIN_S = 10, 60
GRACE_S = DRAIN_DELAY_S + DRAIN_S + 15


def settings(plan: Plan, weights: str) -> dict[str, Any]:
    """Settings of the gateway in a cluster; the environment wins over them.

    Args:    weights: digest of the model that the bundle carries, "" for one of a hub.
    """
    return {
        "model": plan.variant.name,
        "revision": plan.variant.revision or revision_of(plan, weights),
        "tracks": {
            track: [f"dns+http://{fleet_name(plan, track)}:{VLLM_PORT}"] for track in TRACKS
        },
        "stable": "stable",
        "spec": plan.gateway.model_dump(mode="json"),
        "host": "0.0.0.0",
        "port": GATEWAY_PORT,
        "api_keys_file": API_KEYS,
        "timeouts": {"drain_delay_s": DRAIN_DELAY_S, "drain_s": DRAIN_S},
    }


def revision_of(plan: Plan, weights: str) -> str:
    """What tells a local model from another of its name, so that no cached answer is another's."""
    said = plan.variant.model_dump_json() + plan.engine.model_dump_json() + weights
    return hashlib.sha256(said.encode()).hexdigest()[:16]
