"""How much each part of a model does on calibration text: layers, neurons, heads and channels.

Source:  Men et al., ShortGPT, arXiv 2403.03853 (influence of a layer); Gromov et al., The Unreasonable
         Ineffectiveness of the Deeper Layers, arXiv 2403.17887 (of consecutive layers); Muralidharan et
         al., Compact Language Models via Pruning and Knowledge Distillation, arXiv 2407.14679 (neurons,
         heads and channels by activation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import ModelError
from workbench.progress import OnProgress

Floats = NDArray[np.float64]
_BATCH = 8


@dataclass(frozen=True)
class Importance:
    """What calibration text shows.

    Attributes:
        distances: (n_layers + 1, n_layers + 1); [i, j] is 1 - cosine of the residual stream before
            layer i and before layer j, which is what layers i to j - 1 do together.
        neurons: (n_layers, mlp) mean |activation| before the MLP's last product.
        heads: (n_layers, n_heads) mean norm of each head's output.
        channels: (hidden,) mean |output of the norms|, over all of them.
        mean_squares: name of each norm -> (hidden,) mean square of its input.
    """

    distances: Floats
    neurons: Floats
    heads: Floats
    channels: Floats
    mean_squares: dict[str, Floats]

    @property
    def block_influence(self) -> Floats:
        """What each layer does to the residual stream alone."""
        return np.diagonal(self.distances, offset=1).copy()

    def least(self, n: int, *, contiguous: bool) -> list[int]:
        """The n layers that do least: each for itself, or as one run of consecutive layers."""
        if not contiguous:
            return sorted(int(i) for i in np.argsort(self.block_influence, kind="stable")[:n])
        runs = [self.distances[i, i + n] for i in range(len(self.distances) - n)]
        begin = int(np.argmin(runs))
        return list(range(begin, begin + n))


def check_layers(model: Any) -> None:
    """Refuse an architecture whose layers are not understood.

    Raises:  ModelError: not Llama's kind of layers.
    """
    inner: Any = getattr(model, "model", None)
    first: Any = inner.layers[0] if hasattr(inner, "layers") else None
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    if first is None or not all(_has(first, part) for part in parts):
        raise ModelError(
            f"cannot prune architecture {type(model).__name__!r}",
            remedy="Llama, Mistral and Qwen models can be pruned.",
        )


def importance(
    model: Any, rows: Sequence[Sequence[int]], on_progress: OnProgress | None = None
) -> Importance:
    """Run calibration rows through a model and watch.

    Args:    rows: token ids, all of one length.
    Raises:  ModelError: not Llama's kind of layers.
    """
    import torch

    check_layers(model)
    layers, sums = model.model.layers, dict[str, Any]()
    depth, heads = len(layers), model.config.num_attention_heads

    def add(name: str, value: Any) -> None:
        sums[name] = sums.get(name, 0) + value.double()

    def on_mlp(i: int) -> Callable[..., None]:
        return lambda module, inputs: add(f"mlp {i}", inputs[0].float().abs().mean(dim=(0, 1)))

    def on_heads(i: int) -> Callable[..., None]:
        def watch(module: Any, inputs: tuple[Any, ...]) -> None:
            outputs = inputs[0].float().unflatten(-1, (heads, -1))
            add(f"heads {i}", outputs.norm(dim=-1).mean(dim=(0, 1)))

        return watch

    def on_norm(name: str) -> Callable[..., None]:
        def watch(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            add(f"square {name}", inputs[0].float().square().mean(dim=(0, 1)))
            add("channels", output.float().abs().mean(dim=(0, 1)))

        return watch

    hooks = [
        hook
        for i, layer in enumerate(layers)
        for hook in (
            layer.mlp.down_proj.register_forward_pre_hook(on_mlp(i)),
            layer.self_attn.o_proj.register_forward_pre_hook(on_heads(i)),
        )
    ]
    hooks += [norm.register_forward_hook(on_norm(name)) for name, norm in norms(model)]
    distances, batches = np.zeros((depth + 1, depth + 1)), range(0, len(rows), _BATCH)
    # What enters each layer and what leaves the last; the model's own list ends behind the last norm.
    stream: list[Any] = []
    hooks += [
        layer.register_forward_pre_hook(lambda m, inputs: stream.append(inputs[0].float()))
        for layer in layers
    ]
    hooks.append(
        model.model.norm.register_forward_pre_hook(
            lambda m, inputs: stream.append(inputs[0].float())
        )
    )
    try:
        with torch.no_grad():
            for begin in batches:
                stream.clear()
                model(torch.tensor(list(rows[begin : begin + _BATCH]), device=model.device))
                distances += _distances(stream)
                if on_progress is not None:
                    share = min(1.0, (begin + _BATCH) / len(rows))
                    on_progress("watching what each part does", share)
    finally:
        for hook in hooks:
            hook.remove()
    n = len(batches)
    of = {name: value.cpu().numpy() / n for name, value in sums.items()}
    return Importance(
        distances=distances / n,
        neurons=np.stack([of[f"mlp {i}"] for i in range(depth)]),
        heads=np.stack([of[f"heads {i}"] for i in range(depth)]),
        channels=of["channels"],
        mean_squares={name: of[f"square {name}"] for name, _ in norms(model)},
    )


def norms(model: Any) -> list[tuple[str, Any]]:
    """The norms that stand in the residual stream; not those of heads."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.endswith("layernorm") or name == "model.norm"
    ]


def _distances(stream: Sequence[Any]) -> Floats:
    import torch

    found = np.zeros((len(stream), len(stream)))
    for i, before in enumerate(stream):
        for j in range(i + 1, len(stream)):
            cosine = torch.cosine_similarity(before, stream[j], dim=-1)
            found[i, j] = float(1 - cosine.mean())
    return found


def _has(module: Any, path: str) -> bool:
    for part in path.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True
