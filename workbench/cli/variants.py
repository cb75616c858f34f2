"""The variants that lie in a data directory, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from serving.errors import InputError
from workbench.cli.common import DEFAULT_WORKDIR

if TYPE_CHECKING:
    from serving.plan import Variant

FOLDER = "variants"
"""Where those lie that were made by themselves; those of the pipeline lie in `compress`."""
_CARD = "card.json"


def variants_in(workdir: Path) -> dict[str, Variant]:
    """Every variant by its name: those of the pipeline, then those made by themselves."""
    from workbench.compress.recipe import card

    heads = [
        head for folder in ("compress", FOLDER) for head in (workdir / folder).glob(f"*/{_CARD}")
    ]
    heads.sort(key=lambda head: head.stat().st_mtime)
    found = [card(head.parent) for head in heads]
    return {variant.name: variant for variant in found if variant is not None}


def variant_in(workdir: Path, name: str) -> Variant:
    """The variant of a name.

    Raises:  InputError: there is none.
    """
    there = variants_in(workdir)
    if name not in there:
        raise InputError(
            f"--variant(={name!r}) is not in {workdir}",
            remedy=f"There are {sorted(there)}; `workbench compress` makes them.",
        )
    return there[name]


def names_in(ctx: typer.Context) -> list[str]:
    """Their names, for completion; read from the folders alone, since it has to be quick."""
    workdir = Path(ctx.params.get("workdir") or DEFAULT_WORKDIR)
    return sorted({head.parent.name for head in workdir.glob(f"*/*/{_CARD}")})
