"""Render a Plan into what ops deploy: {relative path: text}, the same bytes for the same plan."""

from __future__ import annotations

from serving.manifests.bundle import KUSTOMIZATION, check_kustomization, render

__all__ = ["KUSTOMIZATION", "check_kustomization", "render"]
