"""What makes a small model learn quickly on the machine at hand; knows no lesson.

Nothing here changes what is computed beyond rounding.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Batch = TypeVar("Batch", bound="DataclassInstance")


def patches_as_products(model: nn.Module) -> None:
    """Computes every patch embedding as the matrix product that it is, LoRA's too.

    A convolution whose kernel covers its whole input takes eight times as long in float32 (a
    hundred times in bfloat16) on the way back.

    Args:
        model: Holds Conv3d modules that are fed single patches; changed in place.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            module.forward = partial(_product, module)  # type: ignore[method-assign]


def _product(convolution: nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    """[n, in, t, h, w] to [n, out, 1, 1, 1], as the convolution's own forward."""
    weight = convolution.weight.flatten(1)
    return F.linear(patches.flatten(1), weight, convolution.bias)[..., None, None, None]


def mixed_precision() -> torch.autocast:
    """Autocast to bfloat16 where the CPU has instructions for it; nothing that a GPU does."""
    multiplies = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies)


def fastest_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def moved(batch: Batch, device: torch.device) -> Batch:
    """A dataclass of tensors and nothing else, on another device."""
    parts = {part.name: getattr(batch, part.name) for part in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{name: part.to(device) for name, part in parts.items()})
