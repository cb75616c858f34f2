"""The compress stage: the parent, an INT8 variant and a pruned-and-distilled student, each judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.plan import Variant
from workbench.compress.checkpoint import load, size_bytes
from workbench.compress.distil import distil
from workbench.compress.prune import WIDTH_UNIT, prune
from workbench.compress.quality import measure_quality
from workbench.compress.quantize import quantize_int8

OnProgress = Callable[[str, float], None]
_QUANTIZED, _DISTILLED = 0.3, 0.85


def compress(
    model: str | Path,
    out: Path,
    *,
    seed: int = 0,
    distil_tokens: int = 600_000,
    quality_tokens: int = 32_768,
    quality_tasks: int = 500,
    on_progress: OnProgress | None = None,
) -> list[Variant]:
    """Make the variants under `out`, one folder each with its card.json; finished ones are kept.

    Returns: the unchanged parent, named after its data type, then `int8-w8a8` and `pruned-distilled`.
    Raises:  ModelError: a model that cannot be loaded or pruned; nothing is made then.
    """
    say = on_progress or (lambda doing, share: None)
    say("loading the parent", 0.0)
    parent = _parent(str(model))
    layers, mlp_width = _cut(str(model))
    judge: dict[str, Any] = {"tokens": quality_tokens, "tasks": quality_tasks, "seed": seed}

    def made(variant: Variant, make: Callable[[Path], Any], at: float) -> Variant:
        folder = out / variant.name
        known = _card(folder)
        if known is not None and known.model_copy(update=_UNJUDGED) == variant:
            return known
        make(folder)
        say(f"judging {variant.name}", at)
        target = variant.model_copy(
            update={
                "quality": measure_quality(variant.model, model, **judge),
                "size_bytes": size_bytes(Path(variant.model))
                if Path(variant.model).exists()
                else 0,
            }
        )
        folder.mkdir(parents=True, exist_ok=True)
        target.write(folder / "card.json")
        return target

    first = made(parent, lambda folder: None, 0.02)
    say("quantizing to INT8 (GPTQ)", 0.1)
    int8 = made(
        _child(parent, out, "int8-w8a8", "gptq", {"scheme": "W8A8", "seed": seed, **judge}),
        lambda folder: quantize_int8(model, folder, seed=seed),
        _QUANTIZED,
    )

    def student(folder: Path) -> None:
        start = folder.with_name(folder.name + ".start")
        say("pruning", _QUANTIZED)
        if not (start / "config.json").exists():
            prune(model, start, layers=layers, mlp_width=mlp_width, seed=seed)

        def part(doing: str, share: float) -> None:
            say(doing, _QUANTIZED + share * (_DISTILLED - _QUANTIZED))

        distil(model, start, folder, tokens=distil_tokens, seed=seed, on_progress=part)
        shutil.rmtree(start)

    recipe = {"layers": layers, "mlp_width": mlp_width, "tokens": distil_tokens, **judge}
    distilled = made(
        _child(parent, out, "pruned-distilled", "prune+distil", recipe), student, _DISTILLED
    )
    return [first, int8, distilled]


_UNJUDGED = {"quality": None, "size_bytes": 0}


def _parent(model: str) -> Variant:
    loaded, _ = load(model)
    name = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    return Variant(name=name[str(loaded.dtype).removeprefix("torch.")], model=model)


def _child(
    parent: Variant, out: Path, name: str, method: str, parameters: dict[str, Any]
) -> Variant:
    return Variant(
        name=name,
        model=str(out / name),
        method=method,
        parameters=parameters,
        parent=parent.name,
    )


def _cut(model: str) -> tuple[int, int]:
    """A quarter of the layers, and a third of each MLP, in whole units of width."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    width = config.intermediate_size * 2 // 3 // WIDTH_UNIT * WIDTH_UNIT
    return config.num_hidden_layers // 4, max(WIDTH_UNIT, width)


def _card(folder: Path) -> Variant | None:
    try:
        return Variant.read(folder / "card.json")
    except InputError:
        return None
