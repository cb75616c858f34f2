"""Structured pruning: whole layers by block influence, MLP neurons by their activations.

The result is a smaller dense model of the same architecture, which vLLM runs with no special kernel.

Source:  Men et al., ShortGPT, arXiv 2403.03853 (block influence); Muralidharan et al., Compact Language
         Models via Pruning and Knowledge Distillation, arXiv 2407.14679 (neurons by activation).
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from serving.errors import InputError, ModelError
from workbench.compress.checkpoint import load, written

WIDTH_UNIT = 128
"""Widths stay multiples of this: grouped 4-bit kernels want it."""


def prune(
    model: str | Path,
    out: Path,
    *,
    layers: int = 0,
    mlp_width: int | None = None,
    seed: int = 0,
) -> Path:
    """Write the model without its `layers` least influential layers, its MLPs cut to `mlp_width`.

    Args:    layers: how many to take out.
             mlp_width: neurons left in each MLP; None leaves them as they are.
    Raises:  ModelError: an architecture whose layers are not understood.
             InputError: more than there is to take out, or a width that kernels do not like.
    """
    parent, tokenizer = load(model)
    _check(parent, layers, mlp_width)
    influence, activity = importance(parent, tokenizer, seed=seed)
    gone = sorted(range(len(influence)), key=lambda i: influence[i])[:layers]
    _drop_layers(parent, gone)
    if mlp_width is not None:
        kept = [a for i, a in enumerate(activity) if i not in gone]
        _cut_mlps(parent, kept, mlp_width)
    size = sum(p.numel() * p.element_size() for p in parent.parameters())
    with written(out, needed_bytes=size) as folder:
        parent.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def importance(
    model: Any, tokenizer: Any, *, sequences: int = 16, seed: int = 0
) -> tuple[list[float], list[Any]]:
    """Block influence of each layer (1 - cosine of what enters and leaves), and mean |activation| of
    each MLP neuron, on calibration text and tasks.
    """
    import torch

    from workbench.model.batches import token_batches

    decoder = model.model.layers
    activity: list[Any] = [0.0] * len(decoder)

    def watch(i: int) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            activity[i] = activity[i] + inputs[0].detach().float().abs().mean(dim=(0, 1))

        return hook

    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(watch(i)) for i, layer in enumerate(decoder)
    ]
    influence = [0.0] * len(decoder)
    batches = token_batches(tokenizer, seed=seed, batch_size=8)
    with torch.no_grad():
        for batch in islice(batches, max(1, sequences // 8)):
            states = model(batch.input_ids, output_hidden_states=True).hidden_states
            for i in range(len(decoder)):
                cosine = torch.cosine_similarity(states[i].float(), states[i + 1].float(), dim=-1)
                influence[i] += float(1 - cosine.mean())
    for hook in hooks:
        hook.remove()
    return influence, activity


def _check(model: Any, layers: int, mlp_width: int | None) -> None:
    inner: Any = getattr(model, "model", None)
    if not hasattr(inner, "layers") or not hasattr(inner.layers[0].mlp, "gate_proj"):
        raise ModelError(
            f"cannot prune architecture {type(model).__name__!r}",
            remedy="Llama, Mistral and Qwen models can be pruned.",
        )
    there = len(inner.layers)
    if not 0 <= layers < there:
        raise InputError(
            f"layers(={layers}) must be between 0 and {there - 1}", remedy="Take out fewer layers."
        )
    width = model.config.intermediate_size
    if mlp_width is not None and not (0 < mlp_width <= width and mlp_width % WIDTH_UNIT == 0):
        raise InputError(
            f"mlp_width(={mlp_width}) must be a multiple of {WIDTH_UNIT} up to {width}",
            remedy=f"Take for example {max(WIDTH_UNIT, width // 2 // WIDTH_UNIT * WIDTH_UNIT)}.",
        )


def _drop_layers(model: Any, gone: list[int]) -> None:
    import torch

    kept = [layer for i, layer in enumerate(model.model.layers) if i not in gone]
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    if getattr(model.config, "layer_types", None):
        types = [t for i, t in enumerate(model.config.layer_types) if i not in gone]
        model.config.layer_types = types


def _cut_mlps(model: Any, activity: list[Any], width: int) -> None:
    import torch

    for layer, active in zip(model.model.layers, activity, strict=True):
        kept = torch.topk(active, width).indices.sort().values
        mlp = layer.mlp
        for name, dimension in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = getattr(mlp, name)
            linear.weight = torch.nn.Parameter(linear.weight.data.index_select(dimension, kept))
            if dimension == 0:
                linear.out_features = width
            else:
                linear.in_features = width
    model.config.intermediate_size = width
