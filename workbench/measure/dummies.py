"""Weights of vLLM's load format `dummy` with values as real ones have them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

VARIABLE = "WORKBENCH_FILL_DUMMIES"
"""Set where the processes of a vLLM that loads the format `dummy` are to fill it."""
_STD = 0.02
_FILLS = "initialize_single_dummy_weight"


def fill(tensor: torch.Tensor, *_: object, **__: object) -> None:
    """Give a parameter values as real ones have them.

    vLLM's own leaves integers as they were allocated and rounds all but some of FP8 to zero, which costs
    the GPU less power than weights do.
    """
    import torch

    with torch.no_grad():
        if tensor.device.type == "meta" or not tensor.numel():
            return
        if tensor.dtype == torch.int8:
            tensor.copy_((torch.randn(tensor.shape, device=tensor.device) * 40).clamp_(-127, 127))
        elif not tensor.is_floating_point():
            if tensor.dim() > 1:  # packed weights; vectors of integers are shapes and orders
                tensor.view(torch.uint8).random_(0, 256)
        elif tensor.dim() < 2:
            tensor.fill_(1.0)  # norms, scales of a tensor
        elif tensor.element_size() == 1:
            tensor.copy_((torch.randn(tensor.shape, device=tensor.device) * 64).clamp_(-440, 440))
        elif tensor.shape[-1] == 1:
            tensor.fill_(4e-4)  # scales of rows
        else:
            tensor.copy_(torch.randn(tensor.shape, device=tensor.device) * _STD)


def fill_dummies() -> None:
    """Let vLLM in this process fill what it loads in the format `dummy` by `fill`."""
    from vllm.model_executor.model_loader import dummy_loader, weight_utils

    for module in (weight_utils, dummy_loader):
        if hasattr(module, _FILLS):  # which of the two holds it depends on the version
            setattr(module, _FILLS, fill)


def fill_where_asked() -> None:
    """`fill_dummies` where `VARIABLE` is set.

    It is registered as a `vllm.general_plugins` entry point: every process of vLLM calls it first, the
    workers of a model on several GPUs too.
    """
    if os.environ.get(VARIABLE):
        fill_dummies()
