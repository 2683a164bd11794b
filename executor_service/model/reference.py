"""Router, policy and gated model in one module: for training, and as the services' reference.

Knows how the parts are joined; does not know which router or policy it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from executor_service.core import RoutingMode
from executor_service.model.features import FeatureRow, FeatureSpec
from executor_service.model.gated import GatedModel
from executor_service.model.layers import GatedUpdate
from executor_service.model.mixture import MixtureStacks
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.screen import PixelInput


@dataclass(frozen=True)
class Instruction:
    """One row: its prompt, and the same instruction in the feature template.

    `feature_span` is the half-open range of the instruction's own tokens in `feature_ids`.
    """

    prompt: BuiltPrompt
    feature_ids: tuple[int, ...]
    feature_span: tuple[int, int]


@dataclass(frozen=True)
class MixtureOutput:
    """What one forward gives.

    Attributes:
        logits: [tokens of the row, vocab] per row.
        gate_probabilities: float32 [rows, experts], before mode and top-k; or [rows, decoder
            layers, experts].
        gates: float32 in the same shape, as applied.
    """

    logits: tuple[torch.Tensor, ...]
    gate_probabilities: torch.Tensor
    gates: torch.Tensor


class GatePolicy(Protocol):
    """Turns router logits into gates; gradients go through what it returns."""

    def __call__(
        self, router_logits: torch.Tensor, mode: RoutingMode, top_k: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities and gates.

        Args:
            router_logits: [rows, experts], or [rows, decoder layers, experts].
            mode: How gates are reduced.
            top_k: Experts that keep a gate; None leaves it to the mode.

        Returns:
            Probabilities and gates, float32, each in the shape of the logits.
        """


class MixedExperts(Protocol):
    """What is mixed: an `ExpertSet`, or a module whose parameters the experts are."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the experts, in the order of the gates."""

    @property
    def stacks(self) -> MixtureStacks:
        """Their ranks as they are now; looked up once in every forward."""


class MultiLoRAWithRouter(nn.Module):
    """A frozen base, experts, and a router that learns through their gates.

    The router is a submodule, and so are experts that are a module: `parameters()` is what there is
    to train. With gates per decoder layer, the vision tower gets their mean.

    Args:
        model: The gated base model; nobody else may use it meanwhile.
        experts: The experts, in the order of the router's outputs.
        spec: The features that the router reads.
        router: Text features [rows, text_dim] and vision features [rows, vision_dim] to logits
            [rows, experts] or [rows, decoder layers, experts].
        policy: Logits to gates.
    """

    def __init__(
        self,
        model: GatedModel,
        experts: MixedExperts,
        spec: FeatureSpec,
        router: nn.Module,
        policy: GatePolicy,
    ) -> None:
        super().__init__()
        self.router = router
        self._model = model
        self._experts = experts
        self._spec = spec
        self._policy = policy
        self._kept: ExitStack | None = None

    def forward(
        self,
        input: Sequence[Instruction],  # noqa: A002 - torch's name for it
        images: Sequence[PixelInput],
        routing_mode: RoutingMode = RoutingMode.SOFT,
        top_k: int | None = None,
    ) -> MixtureOutput:
        """Routes every row by its own features and runs all rows in one batch.

        Args:
            input: One instruction per row.
            images: One screen per row.
            routing_mode: Handed to the policy.
            top_k: Handed to the policy.

        Raises:
            RuntimeError: Activation checkpointing is on outside `keeping_gates`.
        """
        self._refuse_lost_gates()
        text, vision = self._features(input, images)
        router_logits = self.router(text, vision)
        probabilities, gates = self._policy(router_logits, routing_mode, top_k)
        with ExitStack() as own:
            applied = self._model.state.applied(self._updates(gates.float(), images))
            (self._kept or own).enter_context(applied)
            seen = self._model.look(images)
            logits = self._model.read([row.prompt for row in input], seen)
        return MixtureOutput(tuple(logits), probabilities, gates)

    @contextmanager
    def keeping_gates(self) -> Iterator[None]:
        """Keeps the gates of the one forward inside until backward is over.

        Activation checkpointing runs layers again during backward, when the forward's gates would
        be gone and the bare base would answer.
        """
        with ExitStack() as stack:
            self._kept = stack
            try:
                yield
            finally:
                self._kept = None

    def _features(
        self, rows: Sequence[Instruction], images: Sequence[PixelInput]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text [rows, text_dim] and vision [rows, vision_dim] features, all gates zero."""
        seen = self._model.encode_vision(images, None)
        asked = [
            FeatureRow(row.feature_ids, row.feature_span, vision)
            for row, vision in zip(rows, seen, strict=True)
        ]
        found = self._model.features(asked, self._spec)
        text = torch.stack([features.text for features in found])
        vision = torch.stack([features.vision for features in found])
        return text.to(self._model.device), vision.to(self._model.device)

    def _updates(self, gates: torch.Tensor, images: Sequence[PixelInput]) -> dict[str, GatedUpdate]:
        """Updates of tower and language model; the gates' values are not known on the host."""
        stacks, everyone = self._experts.stacks, range(len(self._experts.names))
        # [rows, experts], and [rows, decoder layers, experts] where every layer has its own.
        weights, layers = (gates.mean(dim=1), gates) if gates.ndim == 3 else (gates, None)
        patches = [screen.pixel_values.shape[0] for screen in images]
        unit = int(self._model.config.vision_config.spatial_merge_size) ** 2
        return {
            **stacks.tower_updates(weights, patches, unit, everyone),
            **stacks.text_updates(weights, layers, everyone),
        }

    def _refuse_lost_gates(self) -> None:
        checkpointing = self._model.base.training and any(
            getattr(module, "gradient_checkpointing", False)
            for module in self._model.base.modules()
        )
        if checkpointing and torch.is_grad_enabled() and self._kept is None:
            raise RuntimeError(
                "activation checkpointing needs the gates again during backward: "
                "run forward and backward inside keeping_gates()"
            )
