"""Stacks the experts' ranks per module, and selects what a forward needs of them.

Knows ranks, scales and gates; does not know files, names of experts or how a layer runs.

Every expert k that adapts a module contributes r_k rows to `down` [R, d_in] and `up` [R, d_out],
in expert-set order. Of these a forward uses the rows of its active experts: a view where they lie
together, else a packed copy that is kept for the next forward with the same experts. The choice is
made on the host, from gates that the host knows; nothing here waits for the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from executor_service.model.layers import GatedUpdate
from executor_service.model.targets import RowKind, Target


@dataclass(frozen=True)
class LoraWeights:
    """One expert's pair for one module: down [r, d_in], up [r, d_out], and its scaling s_k."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r_k of this module."""
        return int(self.down.shape[0])


@dataclass(frozen=True)
class Segment:
    """The rows of one expert in a stack: its index in the set, its rank, its scaling."""

    expert: int
    rank: int
    scale: float


Layout = tuple[Segment, ...]


@dataclass(frozen=True)
class Stack:
    """The ranks of several experts for one module: down [R, d_in], up [R, d_out]."""

    down: torch.Tensor
    up: torch.Tensor
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.down.nbytes + self.up.nbytes

    def select(self, active: frozenset[int]) -> tuple[Stack | None, bool]:
        """The part of the active experts.

        Args:
            active: Experts by index.

        Returns:
            None if none of them adapts this module, and whether the part is a copy.
        """
        spans: list[tuple[int, int]] = []
        at = 0
        for segment in self.layout:
            if segment.expert in active:
                if spans and spans[-1][1] == at:
                    spans[-1] = (spans[-1][0], at + segment.rank)
                else:
                    spans.append((at, at + segment.rank))
            at += segment.rank
        if not spans:
            return None, False
        layout = tuple(segment for segment in self.layout if segment.expert in active)
        down = [self.down[start:end] for start, end in spans]
        up = [self.up[start:end] for start, end in spans]
        if len(spans) == 1:
            return Stack(down[0], up[0], layout), False
        return Stack(torch.cat(down), torch.cat(up), layout), True


@dataclass(frozen=True)
class _Selection:
    stacks: Mapping[str, Stack]
    copied_bytes: int


class MixtureStacks:
    """All experts of a set, stacked by module. For one thread.

    Args:
        experts: Weights by module name, per expert in set order.
        targets: The model's modules.
        device: Where the stacks live.
    """

    def __init__(
        self,
        experts: Sequence[Mapping[str, LoraWeights]],
        targets: Mapping[str, Target],
        device: torch.device,
    ) -> None:
        self._targets = targets
        self._device = device
        self._stacks = {
            name: stack for name in targets if (stack := _stack(name, experts, device)) is not None
        }
        self.nbytes = sum(stack.nbytes for stack in self._stacks.values())
        # Copies of scattered experts take no more memory than the stacks themselves.
        self._selections: OrderedDict[tuple[frozenset[int], bool], _Selection] = OrderedDict()
        self._copied_bytes = 0
        self._expanders: dict[Layout, tuple[torch.Tensor, torch.Tensor]] = {}

    def text_updates(
        self,
        weights: torch.Tensor,
        layers: torch.Tensor | None,
        active: Iterable[int],
    ) -> dict[str, GatedUpdate]:
        """Updates of the language model.

        Args:
            weights: float32 gates [rows, experts]; one row serves a batch of any size. Gradients
                flow back into them.
            layers: Gates [rows, decoder layers, experts] that replace `weights`, or None.
            active: Experts that may have a gate above zero; all others are left out.

        Returns:
            Updates by module name, for inputs [rows, tokens, d_in].
        """
        updates: dict[str, GatedUpdate] = {}
        expanded: dict[tuple[Layout, int | None], torch.Tensor] = {}
        for name, stack in self._select(frozenset(active), tower=False).items():
            layer = self._targets[name].layer if layers is not None else None
            key = (stack.layout, layer)
            if key not in expanded:
                gates = weights if layers is None or layer is None else layers[:, layer]
                # [rows, 1, R]
                expanded[key] = self._expand(gates, stack.layout).unsqueeze(1)
            updates[name] = GatedUpdate(stack.down, stack.up, expanded[key])
        return updates

    def tower_updates(
        self,
        weights: torch.Tensor,
        patches: Sequence[int],
        merge_unit: int,
        active: Iterable[int],
    ) -> dict[str, GatedUpdate]:
        """Updates of the vision tower, whose images are packed one after the other.

        Args:
            weights: float32 gates [images, experts], or [1, experts] for all images.
            patches: Patches of each image, t * h * w of its grid.
            merge_unit: Patches that become one image token.
            active: Experts that may have a gate above zero.

        Returns:
            Updates by module name, for inputs [packed rows, d_in].
        """
        updates: dict[str, GatedUpdate] = {}
        expanded: dict[tuple[Layout, RowKind], torch.Tensor] = {}
        for name, stack in self._select(frozenset(active), tower=True).items():
            kind = self._targets[name].kind
            key = (stack.layout, kind)
            if key not in expanded:
                gates = self._expand(weights, stack.layout)
                unit = merge_unit if kind is RowKind.MERGED else 1
                # [1, R] or [packed rows, R]
                expanded[key] = _per_packed_row(gates, [count // unit for count in patches])
            updates[name] = GatedUpdate(stack.down, stack.up, expanded[key])
        return updates

    def _expand(self, gates: torch.Tensor, layout: Layout) -> torch.Tensor:
        """[rows, experts] to [rows, R]: g_k * s_k, r_k times. Exact: no product is summed."""
        if layout not in self._expanders:
            owners = [part.expert for part in layout for _ in range(part.rank)]
            scales = [part.scale for part in layout for _ in range(part.rank)]
            self._expanders[layout] = (
                torch.tensor(owners, device=self._device),
                torch.tensor(scales, device=self._device, dtype=torch.float32),
            )
        owner, scale = self._expanders[layout]
        return gates[:, owner] * scale

    def _select(self, active: frozenset[int], *, tower: bool) -> Mapping[str, Stack]:
        key = (active, tower)
        if key in self._selections:
            self._selections.move_to_end(key)
            return self._selections[key].stacks
        stacks: dict[str, Stack] = {}
        copied_bytes = 0
        for name, stack in self._stacks.items():
            if (self._targets[name].kind is not RowKind.TEXT) != tower:
                continue
            part, copied = stack.select(active)
            if part is not None:
                stacks[name] = part
                copied_bytes += part.nbytes if copied else 0
        self._selections[key] = _Selection(stacks, copied_bytes)
        self._copied_bytes += copied_bytes
        while self._copied_bytes > self.nbytes:
            _, dropped = self._selections.popitem(last=False)
            self._copied_bytes -= dropped.copied_bytes
        return stacks


def _stack(
    name: str, experts: Sequence[Mapping[str, LoraWeights]], device: torch.device
) -> Stack | None:
    held = [(at, weights[name]) for at, weights in enumerate(experts) if name in weights]
    if not held:
        return None
    return Stack(
        torch.cat([part.down for _, part in held]).to(device),
        torch.cat([part.up for _, part in held]).to(device),
        tuple(Segment(at, part.rank, part.scale) for at, part in held),
    )


def _per_packed_row(gates: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    if gates.shape[0] == 1:
        return gates
    repeats = torch.tensor(counts, device=gates.device)
    return gates.repeat_interleave(repeats, dim=0, output_size=sum(counts))
