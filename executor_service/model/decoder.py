"""Runs decoder layers over prepared rows: one loop for features, prefill, decode and training.

Knows how transformers calls its layers; does not know gates, requests or where rows come from.

The stock text model runs the same layers in the same order. What it adds is left out on purpose: it
derives masks from the cache it is given, and its image features arrive by a boolean index, which
waits for the device.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch

from executor_service.model.rows import RowBatch


class KeyValues(Protocol):
    """Where a layer leaves its keys and values, and finds those of earlier tokens."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps what a layer computed.

        Args:
            keys: [rows, key-value heads, tokens, head_dim].
            values: The same.
            layer_idx: The decoder layer.
            args: What transformers hands its own caches; not looked at.
            kwargs: The same.

        Returns:
            Keys and values to attend to, [rows, key-value heads, visible tokens, head_dim].
        """


class Decoder:
    """The language model's layers.

    Args:
        language: A `Qwen3VLTextModel`.
    """

    def __init__(self, language: Any) -> None:
        self._language = language
        # transformers 5.24 renamed the argument; 5.40 is to drop the old name.
        arguments = inspect.signature(language.layers[0].forward).parameters
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"

    def after(
        self, batch: RowBatch, layers: int, key_values: KeyValues | None = None
    ) -> torch.Tensor:
        """Hidden states behind the first decoder layers; the others do not run.

        Args:
            batch: The rows.
            layers: How many layers run, from 1.
            key_values: Where keys and values are kept; None for a forward that nothing follows.

        Returns:
            [rows, T, hidden], before any final norm; DeepStack features are part of it.
        """
        hidden = batch.embeds
        kept = {} if key_values is None else {self._cache_argument: key_values}
        rotary = self._language.rotary_emb(hidden, batch.positions[1:])
        for index, layer in enumerate(self._language.layers[:layers]):
            hidden = layer(hidden, position_embeddings=rotary, attention_mask=batch.mask, **kept)
            if index < len(batch.deepstack):
                at = batch.image_mask.unsqueeze(-1)
                seen = batch.deepstack[index].to(hidden)
                hidden = hidden + torch.zeros_like(hidden).masked_scatter(at, seen)
        return hidden

    def run(self, batch: RowBatch, key_values: KeyValues | None = None) -> torch.Tensor:
        """All layers and the final norm, [rows, T, hidden]; arguments as in `after`."""
        hidden = self.after(batch, len(self._language.layers), key_values)
        normed: torch.Tensor = self._language.norm(hidden)
        return normed
