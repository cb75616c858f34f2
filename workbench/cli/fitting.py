"""What `workbench fit` shows beside its table, and models from a device card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from serving.errors import InputError
from workbench.cli.common import show, tell_doubts

if TYPE_CHECKING:
    import pandas as pd

    from serving.plan import EngineArgs
    from simulations.latency import LatencyModel
    from workbench.pipeline import Pipeline


def check_fitted(pipeline: Pipeline, *, as_json: bool) -> None:
    """Say of every fitted model which term dominates where."""
    from workbench.results import Results

    _tell(list(Results(pipeline).latency_models().values()), as_json=as_json)


def fit_device(
    device: str, config: Path | None, engine: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Make a model from a device card and a config.json, and say that it is assumed."""
    from workbench.fit.device import assume, card_of
    from workbench.measure.model_cost import ModelCost

    card = card_of(device)
    if config is None:
        raise InputError(
            f"--device(={device!r}) needs --config", remedy="Give the model's config.json."
        )
    shape = _config(config)
    chosen = _engine(engine, shape)
    cost = ModelCost.of_config(shape, chosen, config.parent)
    if cost is None:
        raise InputError(
            f"--config(={str(config)!r}) is of an architecture or a quantization that is not known",
            remedy="Known are Llama, Mistral, Qwen2 and Qwen3, and compressed-tensors, fp8, gptq, awq.",
        )
    name = config.resolve().parent.name.lower() or "assumed"
    model = assume(card, cost, chosen, variant=name)
    if out is not None:
        model.write(out)
    _tell([model], as_json=as_json)
    tell_doubts(model.doubts, "assumed")
    if out is not None:
        typer.echo(
            f"Wrote {out}. Next: workbench simulate --plan PLAN.json --latency {out}", err=True
        )


def _tell(models: list[LatencyModel], *, as_json: bool) -> None:
    """A table of shares for programs; sentences for people."""
    import pandas as pd

    from workbench.fit.explain import check

    tables = [check(model).assign(variant=model.variant) for model in models]
    if as_json:
        show(pd.concat(tables, ignore_index=True), as_json=True)
        return
    for model, table in zip(models, tables, strict=True):
        _tell_one(model, table)


def _tell_one(model: LatencyModel, table: pd.DataFrame) -> None:
    from workbench.fit.explain import knee_words

    typer.echo(f"{model.variant}, {'assumed' if model.assumed else f'{model.n_steps} steps'}")
    for words in table["words"]:
        typer.echo(f"  {words}")
    typer.echo(f"  {knee_words(model)}")
    if model.heldout_error:
        told = ", ".join(f"{name} {error}" for name, error in model.heldout_error.items())
        typer.echo(f"  relative errors on held-out steps: {told}")
    if model.heldout_by:
        worst = sorted(model.heldout_by.items(), key=lambda item: -item[1].value)[:3]
        told = ", ".join(f"{name} {error}" for name, error in worst)
        typer.echo(f"  largest by shape and load: {told}")


def _config(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read --config(={str(path)!r}) ({error})", remedy="Give a config.json."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"--config(={str(path)!r}) is no object", remedy="Give a config.json.")
    return found


def _engine(text: str | None, config: dict[str, object]) -> EngineArgs:
    """vLLM's own defaults on a data-centre GPU, changed by JSON; the context at most 8,192."""
    from serving.plan import EngineArgs

    context = config.get("max_position_embeddings")
    base = EngineArgs(
        max_model_len=min(context, 8192) if isinstance(context, int) else 8192,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.9,
    )
    try:
        changed = json.loads(text) if text else {}
    except ValueError as error:
        raise InputError(
            f"--engine(={text!r}) is not JSON ({error})", remedy='Write {"max_num_seqs": 8}.'
        ) from error
    return EngineArgs.model_validate(base.model_dump() | changed)
