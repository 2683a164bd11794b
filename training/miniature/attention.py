"""Attention that works out only what may be seen. Knows masks and products; knows no model.

A packed row's branch sees the screen and itself. The attention kernels of a CPU take every other
branch too and then drop it, and their way back from bfloat16 is slower than plain products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

_NAME = "molora_blocks"
# Queries that look together. Fewer see less in vain, more make larger products.
_BLOCK = 128


def attend_in_blocks(model: PreTrainedModel) -> None:
    """Has every layer of a model attend by `attend`, where a CPU computes it.

    Args:
        model: Changed in place; on a GPU it stays as it is.
    """
    if model.device.type != "cpu":
        return
    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention as `transformers` calls it.

    Args:
        module: The layer; nothing of it is read.
        query: [rows, heads, n, width].
        key: [rows, key heads, m, width]; each is shared by as many heads as come to one.
        value: As `key`.
        attention_mask: [rows, 1, n, m], True where a query sees a key; None where all see all.
        scaling: Of the scores.

    Returns:
        [rows, n, heads, width], and None in place of weights.
    """
    if torch.is_autocast_enabled("cpu"):
        # As SDPA's inputs are; the norms before it leave queries and keys in float32.
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if attention_mask is None:
        return _attend(query, key, value, None, scaling).transpose(1, 2), None
    parts = []
    for first in range(0, query.shape[2], _BLOCK):
        mask = attention_mask[:, :, first : first + _BLOCK]
        runs = _runs(mask)
        keys, values, mask = _taken(key, runs, 2), _taken(value, runs, 2), _taken(mask, runs, 3)
        parts.append(_attend(query[:, :, first : first + _BLOCK], keys, values, mask, scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
) -> torch.Tensor:
    if query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
    rows, heads, queries, width = query.shape
    # Heads that share a key are so many more queries of it.
    shared = (rows, key.shape[1], -1)
    scores = (query * scaling).reshape(*shared, width) @ key.transpose(-1, -2)
    scores = scores.view(rows, heads, queries, -1)
    if mask is not None:
        # Added, and not filled in: the way back has nothing to do then.
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(-1).view(*shared, scores.shape[-1])
    return (weights @ value).view(rows, heads, queries, width)


def _runs(mask: torch.Tensor) -> list[tuple[int, int]]:
    """First and length of each unbroken run of keys that any query sees.

    Copying runs is cheaper than picking keys, and NumPy finds them in a thirtieth of torch's time.
    """
    seen = np.pad(mask.numpy().any(axis=(0, 1, 2)), 1)
    edges = np.diff(seen.astype(np.int8)).nonzero()[0].tolist()
    return [(first, end - first) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def _taken(tensor: torch.Tensor, runs: list[tuple[int, int]], dim: int) -> torch.Tensor:
    return torch.cat([tensor.narrow(dim, first, length) for first, length in runs], dim)
