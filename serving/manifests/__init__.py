"""Render a Plan into what ops deploy: {relative path: text}, the same bytes for the same plan."""

from __future__ import annotations

from serving.manifests.bundle import render

__all__ = ["render"]
