"""Muon: the optimiser of matrices, beside AdamW for everything else. Knows gradients; no model.

A matrix steps along its momentum with all singular values brought near one, so that directions that
few examples ask for are learnt as fast as the common ones. `torch.optim.Muon` computes that in
bfloat16, which a CPU without instructions for it takes several times a training step for; here it
is float32, and matrices of one shape go together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Of the quintic iteration, and how often it runs: as in `torch.optim.Muon`.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.01
# A matrix's entries step by this root mean square times the learning rate, which is about AdamW's.
_STEP_RMS = 0.2
# Of AdamW's learning rate. On the tower three and four times it did equally well.
_LARGER = 3.0


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        matrices: Parameters of two dimensions.
        lr: Learning rate.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Steps every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = orthogonalised(torch.stack([self._momentum(m) for m in matrices]))
                reach = group["lr"] * _STEP_RMS * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * _WEIGHT_DECAY).sub_(update, alpha=reach)

    def _momentum(self, matrix: nn.Parameter) -> torch.Tensor:
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum"], _MOMENTUM)


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Brings all singular values near one (0.7 to 1.2), by the Newton-Schulz iteration.

    Args:
        matrices: [n, rows, columns].

    Returns:
        The same shape; singular vectors are those of `matrices`.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class MuonAdamW:
    """Both optimisers as one, with one learning rate.

    Args:
        learner: Whose parameters are trained; the matrices of their linear layers go to Muon.
        others: Modules whose parameters all go to AdamW: heads that are thrown away afterwards.
    """

    def __init__(self, learner: nn.Module, *others: nn.Module) -> None:
        trained = [p for p in learner.parameters() if p.requires_grad]
        # An output head may share its matrix with the embedding, of which a step sees few rows.
        looked_up = {id(m.weight) for m in learner.modules() if isinstance(m, nn.Embedding)}
        linear = {id(m.weight) for m in learner.modules() if isinstance(m, nn.Linear)} - looked_up
        matrices = [p for p in trained if id(p) in linear]
        rest = [p for p in trained if id(p) not in linear]
        rest += [p for other in others for p in other.parameters()]
        self._muon = Muon(matrices, lr=0.0)
        self._adamw = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, learning_rate: float) -> None:
        """Steps all parameters, then forgets their gradients.

        Args:
            learning_rate: AdamW's; Muon's is larger by a fixed factor.
        """
        for optimiser, rate in (
            (self._muon, learning_rate * _LARGER),
            (self._adamw, learning_rate),
        ):
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Moments of both."""
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            ValueError: Another optimiser gave it.
        """
        if state.keys() != {"muon", "adamw"}:
            raise ValueError(
                "the run that is to be gone on with learnt by another optimiser: remove its "
                "folder, or begin another with --work"
            )
        self._muon.load_state_dict(state["muon"])
        self._adamw.load_state_dict(state["adamw"])
