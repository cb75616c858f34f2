"""Structured pruning: fewer layers, narrower MLPs, fewer attention heads, fewer channels.

The result is a smaller dense model of the same architecture, which vLLM runs with no special kernel.
What goes is what does least on calibration text (importance.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.errors import InputError
from workbench.compress.checkpoint import load, written
from workbench.compress.importance import Importance, check_layers, importance, norms
from workbench.compress.texts import fitting_rows, seen_rows
from workbench.model.train import bf16_pays
from workbench.progress import OnProgress

WIDTH_UNIT = 128
"""Widths stay multiples of this: grouped 4-bit kernels want it."""
PRUNED_FILE = "pruned.json"


class Cut(NamedTuple):
    """What is left of a model; None leaves it as it is."""

    layers: int = 0
    contiguous: bool = False
    mlp_width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    hidden: int | None = None


def prune(
    model: str | Path,
    out: Path,
    *,
    layers: int = 0,
    contiguous: bool = False,
    mlp_width: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
    calibration_sequences: int = 64,
    text: Path | None = None,
    task_share: float | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write the model without the parts that do least.

    Args:    layers: how many to take out.
             contiguous: as one run of consecutive layers, instead of each for itself.
             mlp_width: neurons left in each MLP.
             heads: attention heads left in each layer, as many in every group of keys and values.
             kv_heads: groups of heads left that share keys and values.
             hidden: channels left in the residual stream.
             calibration_sequences: rows of 256 tokens to watch the model on.
             text: JSONL to calibrate with; None takes shipped text and tasks.
             task_share: share of its rows that hold shipped tasks; None is none beside a file.
    Raises:  ModelError: an architecture whose layers are not understood.
             InputError: more than there is to take out, or a width that kernels do not like.
    """
    parent, tokenizer = load(model)
    check_layers(parent)
    cut = Cut(layers, contiguous, mlp_width, heads, kv_heads, hidden)
    _check(parent.config, cut)
    import torch

    dtype = parent.dtype
    if torch.cuda.is_available():
        parent.cuda()
    elif not bf16_pays(parent.device):
        parent.float()
    rows = fitting_rows(
        tokenizer, calibration_sequences, seed=seed, text=text, task_share=task_share
    )
    found = importance(parent, rows, on_progress)
    gone = found.least(layers, contiguous=contiguous)
    kept = [i for i in range(parent.config.num_hidden_layers) if i not in gone]
    if hidden is not None:
        _cut_channels(parent, found, hidden)
    _cut_heads(parent, found, cut)
    if mlp_width is not None:
        _cut_mlps(parent, found, mlp_width)
    _drop_layers(parent, kept)
    parent.to(dtype)
    size = sum(p.numel() * p.element_size() for p in parent.parameters())
    with written(out, needed_bytes=size) as folder:
        parent.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        seen_rows(tokenizer, rows).write(folder)
        told = _told(model, kept, found)
        (folder / PRUNED_FILE).write_text(json.dumps(told, indent=1) + "\n")
    return out


def layers_kept(model: str | Path, of: int) -> list[int] | None:
    """Which of the `of` layers of its first parent a pruned model has; None where it does not say."""
    path = Path(model) / PRUNED_FILE
    told = json.loads(path.read_text()) if path.is_file() else {}
    return list(told["layers_kept"]) if told.get("of_layers") == of else None


def _told(model: str | Path, kept: list[int], found: Importance) -> dict[str, Any]:
    """What is written beside a pruned model; layers are counted in the model that was pruned first."""
    path = Path(model) / PRUNED_FILE
    before = json.loads(path.read_text()) if path.is_file() else {}
    first = before.get("layers_kept", list(range(len(found.block_influence))))
    return {
        "layers_kept": [first[i] for i in kept],
        "of_layers": before.get("of_layers", len(first)),
        "block_influence": found.block_influence.round(6).tolist(),
    }


def _check(config: Any, cut: Cut) -> None:
    there = config.num_hidden_layers
    if not 0 <= cut.layers < there:
        raise InputError(
            f"layers(={cut.layers}) must be between 0 and {there - 1}",
            remedy="Take out fewer layers.",
        )
    for name, width, whole in (
        ("mlp_width", cut.mlp_width, config.intermediate_size),
        ("hidden", cut.hidden, config.hidden_size),
    ):
        if width is not None and not (0 < width <= whole and width % WIDTH_UNIT == 0):
            raise InputError(
                f"{name}(={width}) must be a multiple of {WIDTH_UNIT} up to {whole}",
                remedy=f"Take for example {max(WIDTH_UNIT, whole // 2 // WIDTH_UNIT * WIDTH_UNIT)}.",
            )
    groups, all_heads = config.num_key_value_heads, config.num_attention_heads
    kv_heads = cut.kv_heads if cut.kv_heads is not None else groups
    if not 0 < kv_heads <= groups:
        raise InputError(
            f"kv_heads(={kv_heads}) must be between 1 and {groups}", remedy="Keep one or more."
        )
    most = kv_heads * (all_heads // groups)
    if cut.heads is not None and not (0 < cut.heads <= most and cut.heads % kv_heads == 0):
        raise InputError(
            f"heads(={cut.heads}) must be a multiple of {kv_heads} (the groups of keys and values)"
            f" up to {most}",
            remedy=f"Take for example {kv_heads * max(1, most // kv_heads // 2)}.",
        )


def _drop_layers(model: Any, kept: list[int]) -> None:
    import torch

    config = model.config
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in kept])
    config.num_hidden_layers = len(kept)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept]


def _cut_mlps(model: Any, found: Importance, width: int) -> None:
    for layer, active in zip(model.model.layers, found.neurons, strict=True):
        kept = _most(active, width)
        mlp = layer.mlp
        _keep_outputs(mlp.gate_proj, kept)
        _keep_outputs(mlp.up_proj, kept)
        _keep_inputs(mlp.down_proj, kept)
    model.config.intermediate_size = width


def _cut_heads(model: Any, found: Importance, cut: Cut) -> None:
    """Take whole groups out first, then in every group that is left as many heads."""
    config = model.config
    groups, size = (
        config.num_key_value_heads,
        config.num_attention_heads // config.num_key_value_heads,
    )
    kv_heads = groups if cut.kv_heads is None else cut.kv_heads
    left = size if cut.heads is None else cut.heads // kv_heads
    if (kv_heads, left) == (groups, size):
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for layer, active in zip(model.model.layers, found.heads, strict=True):
        by_group = active.reshape(groups, size)
        kept_groups = _most(by_group.sum(axis=1), kv_heads)
        kept_heads = np.concatenate([g * size + _most(by_group[g], left) for g in kept_groups])
        attention = layer.self_attn
        queries, keys = _spans(kept_heads, head_dim), _spans(kept_groups, head_dim)
        _keep_outputs(attention.q_proj, queries)
        _keep_outputs(attention.k_proj, keys)
        _keep_outputs(attention.v_proj, keys)
        _keep_inputs(attention.o_proj, queries)
        attention.num_key_value_groups = left
    config.head_dim = head_dim
    config.num_key_value_heads, config.num_attention_heads = kv_heads, kv_heads * left


def _cut_channels(model: Any, found: Importance, hidden: int) -> None:
    """Take channels out of the residual stream.

    A norm divides by the root mean square over all channels; over those that are left it is another,
    so each norm's weights take up the ratio of the two, as calibration text shows it.
    """
    import torch

    config, kept = model.config, _most(found.channels, hidden)
    config.head_dim = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    index = torch.as_tensor(kept, device=model.device)
    for name, norm in norms(model):
        squares = found.mean_squares[name]
        ratio = float(np.sqrt(squares[kept].mean() / squares.mean()))
        norm.weight = torch.nn.Parameter(norm.weight.data[index] * ratio)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (
            *(attention.q_proj, attention.k_proj, attention.v_proj),
            *(mlp.gate_proj, mlp.up_proj),
        ):
            _keep_inputs(linear, kept)
        _keep_outputs(attention.o_proj, kept)
        _keep_outputs(mlp.down_proj, kept)
    table = model.get_input_embeddings()
    table.weight = torch.nn.Parameter(table.weight.data[:, index])
    table.embedding_dim = hidden
    if config.tie_word_embeddings:
        model.lm_head.weight = table.weight
        model.lm_head.in_features = hidden
    else:
        _keep_inputs(model.lm_head, kept)
    config.hidden_size = hidden


def _most(values: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Indices of the n largest, in their order."""
    return np.sort(np.argsort(-values, kind="stable")[:n])


def _spans(heads: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Indices of all channels of some heads."""
    return (heads[:, None] * head_dim + np.arange(head_dim)).ravel()


def _keep_outputs(linear: Any, kept: NDArray[np.int64]) -> None:
    import torch

    index = torch.as_tensor(kept, device=linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.data.index_select(0, index))
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.data.index_select(0, index))
    linear.out_features = len(kept)


def _keep_inputs(linear: Any, kept: NDArray[np.int64]) -> None:
    import torch

    index = torch.as_tensor(kept, device=linear.weight.device)
    linear.weight = torch.nn.Parameter(linear.weight.data.index_select(1, index))
    linear.in_features = len(kept)
