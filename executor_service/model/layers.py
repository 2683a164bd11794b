"""The gated forward of one linear: the frozen base, plus the experts under gates.

Knows tensors; does not know experts, names of adapters or where gates come from.

    u = (x @ downᵀ) * gates        # [..., R]; gates carry g_k * s_k, repeated r_k times
    y = base(x) + u @ up           # [..., d_out]

Rule for accumulation: both products run in the base's dtype with the backend's accumulator
(float32 for half precisions); the gates are float32 and multiply `u` in float32, which is then
rounded to the base's dtype once; the sum with the base's output is part of the second product.

The update is handed in by `GateState` for one forward. A module without an update runs its own
forward and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from executor_service.model.targets import Target


@dataclass(frozen=True)
class GatedUpdate:
    """What one module adds to its base in one forward.

    Attributes:
        down: [R, d_in], the A of every active expert.
        up: [R, d_out], their B, transposed.
        gates: float32, broadcast against [..., R]: [rows, 1, R] or, per token, [rows, tokens, R]
            in the language model; [1, R] or [packed rows, R] in the tower.
    """

    down: torch.Tensor
    up: torch.Tensor
    gates: torch.Tensor


class GateState:
    """The updates of the forward that is running now; empty means the bare base.

    One per model, for one thread. Nothing outlives `applied`.
    """

    def __init__(self) -> None:
        self.updates: Mapping[str, GatedUpdate] = {}

    @contextmanager
    def applied(self, updates: Mapping[str, GatedUpdate]) -> Iterator[None]:
        """Apply updates, by module name, to every forward inside.

        Raises:
            RuntimeError: Another forward is running: two callers share a model.
        """
        if self.updates:
            raise RuntimeError("gates are being applied already; a model serves one thread")
        self.updates = updates
        try:
            yield
        finally:
            self.updates = {}


class GatedForward:
    """Stands in for the `forward` of one module, whose own it calls.

    It replaces the method and not the module: names, parameters and hooks stay as they were, and
    the bare base pays one dictionary look-up (a wrapping module costs 2 % of a small step).

    Args:
        module: Any module that maps [..., d_in] to [..., d_out], frozen.
        name: Its key in the updates.
        state: Where updates are found.
    """

    def __init__(self, module: nn.Module, name: str, state: GateState) -> None:
        self._base: Callable[[torch.Tensor], torch.Tensor] = module.forward
        self._name = name
        self._state = state

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Base output, plus the update if there is one."""
        update = self._state.updates.get(self._name)
        if update is None:
            return self._base(x)
        return gated(self._base(x), x, update)


class GatedPatchForward(GatedForward):
    """The same for a convolution whose stride is its kernel: one patch is one row."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Base output [patches, d_out, 1, 1, 1], plus the update if there is one."""
        update = self._state.updates.get(self._name)
        if update is None:
            return self._base(x)
        y = self._base(x)
        return gated(y.flatten(1), x.flatten(1), update).view_as(y)


def gated(y: torch.Tensor, x: torch.Tensor, update: GatedUpdate) -> torch.Tensor:
    """Adds a gated update to a base output.

    Args:
        y: [..., d_out], what the base made of `x`; written to where no gradient is asked for.
        x: [..., d_in].
        update: Weights and gates.

    Returns:
        [..., d_out] in the dtype of `y`.
    """
    # [..., R]
    u = (nn.functional.linear(x, update.down) * update.gates).to(y.dtype)
    if not torch.is_grad_enabled() and y.ndim == 3 and y.device.type == "cpu":
        # Row by row: a CPU's GEMM over a few rows takes longer than as many products with a vector.
        return y.baddbmm_(u, update.up.expand(len(y), -1, -1))
    # [rows of all kinds, d_out] and [..., R]
    flat_y, flat_u = y.flatten(0, -2), u.flatten(0, -2)
    if torch.is_grad_enabled():
        return torch.addmm(flat_y, flat_u, update.up).view_as(y)
    # In place: copying `y` first costs some 10 % of a long prompt's linears.
    return flat_y.addmm_(flat_u, update.up).view_as(y)


def install(model: nn.Module, targets: Iterable[Target]) -> GateState:
    """Makes every target of a model gated.

    Args:
        model: The frozen base; its modules' `forward` is replaced.
        targets: What to make gated.

    Returns:
        The state through which gates are handed in.
    """
    state = GateState()
    for target in targets:
        module = model.get_submodule(target.name)
        kind = GatedPatchForward if target.kernel else GatedForward
        module.forward = kind(module, target.name, state)
    return state
