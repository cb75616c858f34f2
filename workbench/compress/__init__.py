"""Compress: make servable variants of a model and judge what each keeps of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.compress.distil import distil
    from workbench.compress.family import Variants
    from workbench.compress.prune import prune
    from workbench.compress.quality import Ask, judge
    from workbench.compress.quantize import quantize
    from workbench.compress.recipe import Recipe, lineage, make, read_recipes, recipes_of
    from workbench.compress.sparsify import sparsify
    from workbench.compress.variants import compress

_HOME = {
    "Ask": "workbench.compress.quality",
    "Recipe": "workbench.compress.recipe",
    "Variants": "workbench.compress.family",
    "compress": "workbench.compress.variants",
    "distil": "workbench.compress.distil",
    "judge": "workbench.compress.quality",
    "lineage": "workbench.compress.recipe",
    "make": "workbench.compress.recipe",
    "prune": "workbench.compress.prune",
    "quantize": "workbench.compress.quantize",
    "read_recipes": "workbench.compress.recipe",
    "recipes_of": "workbench.compress.recipe",
    "sparsify": "workbench.compress.sparsify",
}
__all__ = [
    "Ask",
    "Recipe",
    "Variants",
    "compress",
    "distil",
    "judge",
    "lineage",
    "make",
    "prune",
    "quantize",
    "read_recipes",
    "recipes_of",
    "sparsify",
]


lazy(__name__, _HOME)
