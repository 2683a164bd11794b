"""Keys and values of running answers: a fixed number of slots of fixed length.

Knows tensors and places in them; does not know whose slot it is or when it is free.

The memory is taken once and never grows. A slot's content beyond its answer's length is what an
earlier answer left there; nothing attends to it. Behind its usable length each slot has one spare
position, where a step in static shapes keeps what belongs to no answer (see `static`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prompt's first tokens, apart from any slot; never changed.

    `keys` and `values` are [key-value heads, length, head_dim], one for each decoder layer.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(part.nbytes for part in (*self.keys, *self.values))


class SlotCache:
    """For one thread.

    Args:
        config: The text model's config.
        slots: Answers at once.
        length: Tokens of the longest prompt and answer together.
        device: Where it lives.
        dtype: The model's.

    Attributes:
        count: Slots.
        length: Usable tokens of each, and the index of the spare position.
        device: Where it lives.
    """

    def __init__(
        self, config: Any, *, slots: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (slots, config.num_key_value_heads, length + 1, config.head_dim)
        layers = range(config.num_hidden_layers)
        # Zeros and not whatever was there: a masked key counts for nothing unless it is a NaN.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.count, self.length, self.device = slots, length, device

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def chunk(self, slot: int, start: int, end: int) -> ChunkKeyValues:
        """For a forward over the tokens [start, end) of one slot, those before being there."""
        assert end <= self.length, "a prompt fits into its slot"
        return ChunkKeyValues(self, slot, start, end)

    def step(self, slots: Sequence[int], lengths: Sequence[int]) -> StepKeyValues:
        """For a forward over one token in each of several slots.

        Args:
            slots: Those that hold an answer.
            lengths: How many tokens each of them holds before.
        """
        assert max(lengths) < self.length, "an answer fits into its slot"
        return StepKeyValues(self, slots, lengths)

    def save(self, slot: int, length: int) -> Prefix:
        """A copy of the first tokens of a slot."""
        keys = tuple(part[slot, :, :length].clone() for part in self.keys)
        values = tuple(part[slot, :, :length].clone() for part in self.values)
        return Prefix(keys, values, length)

    def restore(self, slot: int, prefix: Prefix) -> None:
        """Make a saved prefix the beginning of a slot."""
        for held, saved in zip((*self.keys, *self.values), (*prefix.keys, *prefix.values),
                               strict=True):  # fmt: skip
            held[slot, :, : prefix.length] = saved

    def clear(self, slot: int) -> None:
        """Wipe a slot whose answer failed: what is not a number would outlive it."""
        for part in (*self.keys, *self.values):
            part[slot].zero_()


class ChunkKeyValues:
    """Writes the tokens of one row behind those that its slot holds. See `SlotCache.chunk`."""

    def __init__(self, cache: SlotCache, slot: int, start: int, end: int) -> None:
        self._cache, self._slot, self._start, self._end = cache, slot, start, end

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps [1, heads, end - start, head_dim], returns [1, heads, end, head_dim]."""
        visible = []
        for held, new in ((self._cache.keys, keys), (self._cache.values, values)):
            row = held[layer_idx][self._slot : self._slot + 1]
            row[:, :, self._start : self._end] = new
            visible.append(row[:, :, : self._end])
        return visible[0], visible[1]


class StepKeyValues:
    """Writes one token into each of several slots. See `SlotCache.step`.

    The forward's rows are all slots from the lowest to the highest of them, so that what it attends
    to is a view; a row between them whose slot is not one of them computes for nothing.

    Attributes:
        first: The slot that is row 0.
        count: Rows.
        longest: Tokens that every row is shown, most of them masked for a shorter one.
    """

    def __init__(self, cache: SlotCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._cache = cache
        self.first, self.count = min(slots), max(slots) + 1 - min(slots)
        self.longest = max(lengths) + 1
        device = cache.keys[0].device
        self._slots, self._lengths = torch.tensor([slots, lengths], device=device)
        self._rows = self._slots - self.first

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps [rows, heads, 1, head_dim], returns [rows, heads, longest, head_dim]."""
        visible = []
        for held, new in ((self._cache.keys, keys), (self._cache.values, values)):
            part = held[layer_idx]
            # A row without an answer may lie in a slot that is being prefilled.
            part[self._slots, :, self._lengths] = new[self._rows, :, 0]
            visible.append(part[self.first : self.first + self.count, :, : self.longest])
        return visible[0], visible[1]
