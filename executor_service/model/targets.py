"""The modules of a Qwen3-VL that an adapter may change.

Knows module names and shapes, real or on the meta device; does not know adapters or gates.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

import torch
from torch import nn

LANGUAGE = "model.language_model."
VISION = "model.visual."
_DECODER_LAYER = re.compile(r"model\.language_model\.layers\.(\d+)\.")
_MERGER = re.compile(r"model\.visual\.(merger|deepstack_merger_list\.\d+)\.")


class RowKind(enum.Enum):
    """What one row of a module's input is."""

    TEXT = "text"  # [rows, tokens, d_in]: the language model
    PATCH = "patch"  # [patches, d_in]: the tower, images packed one after the other
    MERGED = "merged"  # [image tokens, d_in]: the mergers, images packed


@dataclass(frozen=True)
class Target:
    """One module: `d_in` features to `d_out`.

    `kernel` is that of a convolution whose stride equals it, a linear on flattened patches
    (channels first), and empty for a linear. `layer` is the LLM decoder layer, None in the tower.
    """

    name: str
    d_in: int
    d_out: int
    kind: RowKind
    kernel: tuple[int, ...] = ()
    layer: int | None = None


def find_targets(model: nn.Module) -> dict[str, Target]:
    """All linears of decoder layers and tower, and the patch embedding.

    Args:
        model: A `Qwen3VLForConditionalGeneration`; the meta device is enough.

    Returns:
        Targets by module name, in module order. Never `lm_head` or the token embedding.
    """
    targets: dict[str, Target] = {}
    for name, module in model.named_modules():
        if name.startswith((LANGUAGE, VISION)):
            target = _target(name, module)
            if target is not None:
                targets[name] = target
    return targets


def _target(name: str, module: nn.Module) -> Target | None:
    if isinstance(module, nn.Conv3d):
        return _convolution(name, module)
    # By attributes: a quantised linear is no nn.Linear and is as good a base.
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int):
        layer = _DECODER_LAYER.match(name)
        return Target(name, d_in, d_out, _kind(name), layer=int(layer.group(1)) if layer else None)
    return None


def _convolution(name: str, module: nn.Conv3d) -> Target | None:
    plain = module.groups == 1 and set(module.padding) == {0} and set(module.dilation) == {1}
    if not plain or module.stride != module.kernel_size:
        return None
    kernel = (module.in_channels, *module.kernel_size)
    d_in = torch.Size(kernel).numel()
    return Target(name, d_in, module.out_channels, _kind(name), kernel=kernel)


def _kind(name: str) -> RowKind:
    if name.startswith(LANGUAGE):
        return RowKind.TEXT
    return RowKind.MERGED if _MERGER.match(name) else RowKind.PATCH
