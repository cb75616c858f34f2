"""How a variant is made: steps as data, one after the other, each with its card.

A recipe is a name and its steps. Each step makes a checkpoint from the one before it, in a folder of its
own with a card.json that says how it was made; a step whose card is there and says the same is not done
again. In YAML, where a recipe may begin with another one's result:

    pruned: prune:layers=1,mlp_width=512
    pruned-distilled: [pruned, "distil:tokens=600000"]
    pruned-distilled-int8: [pruned-distilled, int8-gptq]
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from serving.errors import InputError
from serving.plan import Variant
from serving.values import Value
from workbench.compress.checkpoint import size_bytes
from workbench.compress.distil import snapshot_folder
from workbench.compress.steps import Step, parse_step, step_of, told
from workbench.measure.environment import Environment
from workbench.progress import OnProgress

CARD = "card.json"
_AT = ".at-"
_NOT_SAID: dict[str, Any] = {"quality": None, "size_bytes": 0, "made_with": {}}


class Recipe(Value):
    """A name and the steps that make it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    steps: tuple[Step, ...] = Field(min_length=1)
    begins_with: str | None = None
    """Name of the recipe that the first step goes on from; None is the parent of all."""

    def names(self) -> list[str]:
        """Of the checkpoint behind each step; the last has the recipe's name."""
        labels = [step.label() for step in self.steps[:-1]]
        return [*(f"{self.name}.{i}-{label}" for i, label in enumerate(labels, start=1)), self.name]


def read_recipes(path: Path) -> list[Recipe]:
    """Recipes from YAML: names with their steps, see above; a step may also be a mapping of its fields.

    Raises:  InputError: not there, or no such recipes.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read {path} ({str(error).splitlines()[0]})", remedy="Check the file."
        ) from error
    return recipes_of(found, str(path))


def recipes_of(found: Any, where: str = "recipes") -> list[Recipe]:
    """Recipes from a mapping of names to steps.

    Args:    where: what to call it in errors.
    Raises:  InputError: it is none.
    """
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{where} is no mapping of names to steps", remedy="See experiments/payoff-cpu.yaml."
        )
    recipes: list[Recipe] = []
    for name, steps in found.items():
        listed = list(steps) if isinstance(steps, list) else [steps]
        known = {recipe.name for recipe in recipes}
        first = listed.pop(0) if listed[0] in known else None
        recipes.append(recipe_of(str(name), listed, where, begins_with=first))
    return recipes


def recipe_of(
    name: str, steps: Sequence[Any], where: str, *, begins_with: str | None = None
) -> Recipe:
    """A recipe from a name and its steps, each as text or as a mapping.

    Raises:  InputError: says what is wrong with it.
    """
    parsed = [
        parse_step(step) if isinstance(step, str) else step_of(step, f"{where}: {name}: ")
        for step in steps
    ]
    try:
        return Recipe(name=name, steps=tuple(parsed), begins_with=begins_with)
    except ValidationError as error:
        raise InputError(
            f"{where}: {told(error)}", remedy="Names are small letters, digits, dots and dashes."
        ) from error


def check(recipes: Sequence[Recipe]) -> None:
    """Refuse before any work what this machine cannot serve.

    Raises:  InputError: says what is missing.
    """
    for recipe in recipes:
        for step in recipe.steps:
            step.check()


def make(
    recipes: Sequence[Recipe],
    parent: Variant,
    folder: Path,
    *,
    known: Sequence[Variant] = (),
    on_progress: OnProgress | None = None,
) -> list[Variant]:
    """Make the checkpoint behind each step of recipes, in folder/<name>; finished ones are kept.

    Args:    parent: what recipes begin with, and what students learn from.
             known: variants that recipes may begin with as well.
    Returns: one variant per step, in their order.
    """
    there = {variant.name: variant for variant in (parent, *known)}
    made: list[Variant] = []
    total, done = sum(len(recipe.steps) for recipe in recipes), 0
    for recipe in recipes:
        before = there[recipe.begins_with or parent.name]
        for name, step in zip(recipe.names(), recipe.steps, strict=True):

            def say(doing: str, share: float, name: str = name, done: int = done) -> None:
                if on_progress is not None:
                    on_progress(f"{name}: {doing}", (done + share) / total)

            before = _once(step, name, before, parent, folder / name, say)
            there[name] = before
            made.append(before)
            done += 1
    return made


def _once(
    step: Step, name: str, before: Variant, root: Variant, out: Path, on_progress: OnProgress
) -> Variant:
    wanted = Variant(
        name=name,
        model=str(out.resolve()),
        method=step.method,
        parameters=step.model_dump(mode="json", exclude={"step"}, exclude_none=True),
        parent=before.name,
        made_of=_digest(before),
        engine={**before.engine, **step.engine},
        notes=(*before.notes, *step.notes),
    )
    known = card(out)
    if known is not None and known.model_copy(update=_NOT_SAID) == wanted:
        return known
    on_progress(step.label(), 0.0)
    step.make(before, root, out, on_progress)
    made = wanted.model_copy(update={"size_bytes": size_bytes(out), "made_with": _made_with()})
    made.write(out / CARD)
    return made


def _digest(variant: Variant) -> str:
    how = variant.model_copy(update=_NOT_SAID).model_dump_json(exclude={"name"})
    return blake2b(how.encode(), digest_size=8).hexdigest()


def snapshots_of(variant: Variant) -> list[Variant]:
    """The students that were kept on the way to a distilled one, the youngest first.

    Each is a variant of the same line with the tokens it has learnt from.
    """
    if not variant.parameters.get("snapshots"):
        return []
    found = []
    for path in snapshot_folder(Path(variant.model)).glob("*/config.json"):
        tokens = int(path.parent.name)
        fresh = variant.model_copy(
            update={
                "name": f"{variant.name}{_AT}{tokens}",
                "model": str(path.parent),
                "parameters": variant.parameters | {"tokens": tokens},
                "quality": None,
            }
        )
        known = card(path.parent)
        same = known is not None and known.model_copy(update={"quality": None}) == fresh
        found.append(known if known and same else fresh)
    return sorted(found, key=lambda v: int(v.parameters["tokens"]))


def is_snapshot(variant: Variant) -> bool:
    """Whether it is one of snapshots_of."""
    return _AT in variant.name


def card(folder: Path) -> Variant | None:
    """The variant whose card lies in a folder; None where there is none."""
    try:
        return Variant.read(folder / CARD)
    except InputError:
        return None


def lineage(variants: Sequence[Variant]) -> list[tuple[int, Variant]]:
    """Variants as a tree: each with its depth, children behind their parent in the order given."""
    names = {variant.name for variant in variants}
    children: dict[str | None, list[Variant]] = {}
    for variant in variants:
        above = variant.parent if variant.parent in names else None
        children.setdefault(above, []).append(variant)

    def below(name: str | None, depth: int) -> list[tuple[int, Variant]]:
        return [
            entry
            for child in children.get(name, [])
            for entry in [(depth, child), *below(child.name, depth + 1)]
        ]

    return below(None, 0)


def _made_with() -> dict[str, str]:
    found = Environment.capture()
    return {"hardware": found.hardware, "python": found.python, **found.versions}
