"""Render a Plan into what ops deploy: {relative path: text}, the same bytes for the same plan.

bundle.py      all files           templates.py, templates/   those with a few placeholders
names.py       names, labels       kustomize.py   base, fleets, overlays, alternatives
vllm.py        a replica           gateway.py     the gateway's settings
autoscaling.py HPA, adapter, KEDA  monitoring.py  alerts, alert_cases.py their tests, dashboard.py
images.py      pins                limits.py, leaks.py   what is refused
"""

from __future__ import annotations

from serving.manifests.bundle import render
from serving.manifests.images import Images

__all__ = ["Images", "render"]
