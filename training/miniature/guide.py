"""Shows the decoder where to look while it learns to.

Knows the attention of one decoder layer; does not know questions. Left to itself the decoder
averages over the screen for a thousand steps before it looks at anything, and reads what it looks
at for another thousand before it can tell where that was. Two heads are told which image token
holds the answer, and the layer's output is asked for the place.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextModel,
    apply_rotary_pos_emb,
)

from training.packing import PackedBatch

PLACES = 100  # bins of the width, and of the height


class Guide(nn.Module):
    """A loss on where the heads of one key-value group look, and on what the layer then knows.

    Args:
        decoder: The language model; hooks stay on it until `remove`.
        layer: Index of the layer whose first group of heads is guided.
    """

    def __init__(self, decoder: Qwen3VLTextModel, layer: int) -> None:
        super().__init__()
        self.place = nn.Linear(decoder.config.hidden_size, 2 * PLACES).to(decoder.device)
        attention: Any = decoder.layers[layer].self_attn
        self._scale = attention.scaling
        self._heads = attention.num_key_value_groups
        self._seen: dict[str, Any] = {}
        parts: dict[str, nn.Module] = {
            "queries": attention.q_norm,
            "keys": attention.k_norm,
            "rotation": decoder.rotary_emb,
            "output": decoder.layers[layer],
        }
        self._hooks = [
            part.register_forward_hook(partial(self._keep, name)) for name, part in parts.items()
        ]

    def _keep(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._seen[name] = output

    def loss(self, batch: PackedBatch) -> torch.Tensor:
        """The sum of `looking` and `placing` for the decoder's last forward, in nats."""
        return self.looking(batch) + self.placing(batch)

    def looking(self, batch: PackedBatch) -> torch.Tensor:
        """Mean of -log(attention on the image token where the answer is found)."""
        queries, keys = apply_rotary_pos_emb(
            self._seen["queries"].transpose(1, 2).float(),
            self._seen["keys"].transpose(1, 2).float(),
            *(part.float() for part in self._seen["rotation"]),
        )
        losses = []
        for at in range(len(batch.input_ids)):
            position, target = batch.looks[batch.looks[:, 0] == at, 1:].T
            scores = queries[at, : self._heads, position] @ keys[at, 0].T * self._scale
            hidden = ~batch.attention_mask[at, 0, position]
            shares = scores.masked_fill(hidden, float("-inf")).log_softmax(-1)
            losses.append(-shares[:, torch.arange(len(target)), target].flatten())
        return torch.cat(losses).mean()

    def placing(self, batch: PackedBatch) -> torch.Tensor:
        """Mean of -log P(the place looked at), read from the layer's output."""
        row, position, _ = batch.looks.T
        places = self.place(self._seen["output"][row, position].float()).view(-1, PLACES)
        return nn.functional.cross_entropy(places, (batch.places * PLACES).long().flatten())

    def remove(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()
