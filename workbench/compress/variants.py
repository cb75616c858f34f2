"""The compress stage: a parent and what recipes make of it, each judged by what vLLM says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.plan import EngineArgs, Variant
from workbench.compress.checkpoint import load, size_bytes
from workbench.compress.family import Variants
from workbench.compress.prune import WIDTH_UNIT
from workbench.compress.quality import Ask, judge
from workbench.compress.recipe import CARD, Recipe, card, make, snapshots_of
from workbench.compress.recipe import check as check_recipes
from workbench.compress.steps import Distil, Prune, Quantize
from workbench.progress import OnProgress

_MAKING = 0.75
"""Share of the time that making takes, in the progress that is shown."""
_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def compress(
    model: str | Path,
    out: Path,
    *,
    engine_args: EngineArgs,
    recipes: Sequence[Recipe] | None = None,
    ask: Ask = Ask(),  # noqa: B008  (frozen)
    seed: int = 0,
    distil_tokens: int = 600_000,
    on_progress: OnProgress | None = None,
) -> Variants:
    """Make variants of a model under `out`, a folder each with its card.json, and judge them.

    What is there and says the same is neither made nor judged again.

    Args:    engine_args: to serve them with while they are judged.
             recipes: None makes `int8-w8a8` (GPTQ) and `pruned-distilled`.
             ask: what to judge by.
             seed, distil_tokens: of the recipes that are made where none are given.
    Returns: the unchanged parent, named after its data type, one variant per recipe, then the students
             that recipes ask to keep on the way to theirs.
    Raises:  ModelError: a model that cannot be loaded or pruned.
             InputError: what this machine cannot serve; nothing is made then.
    """
    say = on_progress or (lambda doing, share: None)
    say("loading the parent", 0.0)
    parent = parent_of(model)
    chosen = usual(model, seed, distil_tokens) if recipes is None else list(recipes)
    check_recipes(chosen)
    made = make(chosen, parent, out, on_progress=lambda doing, share: say(doing, _MAKING * share))
    names = {recipe.name for recipe in chosen}
    finals = [variant for variant in made if variant.name in names]
    known = card(out / parent.name)
    first = known if known and known.model_copy(update={"quality": None}) == parent else parent
    found = judged(
        [first, *finals, *(young for variant in finals for young in snapshots_of(variant))],
        parent,
        ask,
        engine_args=engine_args,
        cache=out,
        on_progress=lambda doing, share: say(doing, _MAKING + (1 - _MAKING) * share),
    )
    return Variants(found)


def judged(
    variants: Sequence[Variant],
    parent: Variant,
    ask: Ask,
    *,
    engine_args: EngineArgs,
    cache: Path,
    on_progress: OnProgress | None = None,
) -> list[Variant]:
    """The variants with their quality on their cards; those that have it are not judged again."""
    key = ask.key()
    todo = [v for v in variants if v.quality is None or v.quality.asked != key]
    if not todo:
        return list(variants)
    found: dict[str, Variant] = {}
    qualities = judge(
        todo, parent, ask, engine_args=engine_args, cache=cache, on_progress=on_progress
    )
    for unjudged, quality in zip(todo, qualities, strict=True):
        variant = unjudged.model_copy(update={"quality": quality})
        found[variant.name] = variant
        # Nothing of ours is written into a model of the user's.
        there = cache / variant.name if variant.model == parent.model else Path(variant.model)
        variant.write(there / CARD)
    return [found.get(variant.name, variant) for variant in variants]


def parent_of(model: str | Path) -> Variant:
    """A model as the parent of others, named after its data type.

    Raises:  ModelError: it cannot be loaded.
    """
    loaded, _ = load(model)
    name = _NAMES.get(str(loaded.dtype).removeprefix("torch."), "parent")
    return Variant(name=name, model=str(model), size_bytes=size_bytes(model))


def usual(model: str | Path, seed: int, distil_tokens: int) -> list[Recipe]:
    """INT8, and a student without a quarter of the layers and a third of each MLP."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model))
    width = max(WIDTH_UNIT, config.intermediate_size * 2 // 3 // WIDTH_UNIT * WIDTH_UNIT)
    pruned = Prune(layers=config.num_hidden_layers // 4, mlp_width=width, seed=seed)
    return [
        Recipe(name="int8-w8a8", steps=(Quantize(seed=seed),)),
        Recipe(name="pruned-distilled", steps=(pruned, Distil(tokens=distil_tokens, seed=seed))),
    ]
