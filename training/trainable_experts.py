"""Experts as parameters, and back: what stage 3 trains and PEFT loads afterwards.

Knows adapters and their files; knows no gates, no loss and no step.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from executor_service.model.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    match_keys,
    read_adapter,
)
from executor_service.model.experts import ABOUT_FILE, ExpertLocation, ExpertSet
from executor_service.model.gated import GatedModel
from executor_service.model.mixture import LoraWeights, MixtureStacks
from executor_service.model.targets import Target

_PEFT_PREFIX = "base_model.model."


class TrainableExperts(nn.Module):
    """A set's experts as float32 parameters, whatever the base computes in.

    Args:
        experts: The set as it was loaded; its files are read again, in full precision.
        model: The base.

    Attributes:
        names: Of the experts, in expert-set order.
    """

    def __init__(self, experts: ExpertSet, model: GatedModel) -> None:
        super().__init__()
        self.names = experts.names
        self._targets = model.targets
        self._dtype, self._device = model.dtype, model.device
        self._sources = [
            ExpertLocation(expert.identity.name, expert.source) for expert in experts.experts
        ]
        self._down = nn.ModuleList()
        self._up = nn.ModuleList()
        self._scales: list[dict[str, float]] = []
        for source in self._sources:
            weights = read_adapter(source.adapter, model.targets, torch.float32).weights
            self._down.append(_parameters({name: pair.down for name, pair in weights.items()}))
            self._up.append(_parameters({name: pair.up for name, pair in weights.items()}))
            self._scales.append({name: pair.scale for name, pair in weights.items()})
        self.to(model.device)

    @property
    def stacks(self) -> MixtureStacks:
        """The experts as they are now, in the base's dtype; gradients flow back into them."""
        weights = [
            {
                name: LoraWeights(part.down.to(self._dtype), part.up.to(self._dtype), part.scale)
                for name, part in self.weights(at).items()
            }
            for at in range(len(self.names))
        ]
        return MixtureStacks(weights, self._targets, self._device)

    def weights(self, at: int) -> dict[str, LoraWeights]:
        """One expert's parameters, by module name."""
        down, up = dict(self._down[at].named_parameters()), dict(self._up[at].named_parameters())
        return {
            name: LoraWeights(down[_key(name)], up[_key(name)], scale)
            for name, scale in self._scales[at].items()
        }

    def write(self, out: Path) -> None:
        """Writes every expert as the adapter it was read from, with its new weights.

        Args:
            out: Gets `<name>/adapter/` and, where there was one, `<name>/expert.json`.
        """
        for at, source in enumerate(self._sources):
            directory = out / source.name
            write_adapter(source.adapter, directory / "adapter", self.weights(at), self._targets)
            about = source.directory / ABOUT_FILE
            if about.exists():
                shutil.copyfile(about, directory / ABOUT_FILE)


def write_adapter(
    source: Path, out: Path, weights: Mapping[str, LoraWeights], targets: Mapping[str, Target]
) -> None:
    """Writes an adapter with other weights: config, names and shapes are those of its source.

    Args:
        source: Directory of the adapter that the weights began as.
        out: Directory; made if it is missing.
        weights: By module name; float32.
        targets: The model's modules.
    """
    tensors: dict[str, torch.Tensor] = {}
    for pair in match_keys(load_file(source / WEIGHTS_FILE), targets):
        part, name = weights[pair.target.name], _PEFT_PREFIX + pair.file_name
        down, up = part.down.detach().cpu(), part.up.detach().cpu()
        tensors[f"{name}.lora_A.weight"] = down.reshape(pair.a.shape).contiguous()
        tensors[f"{name}.lora_B.weight"] = up.t().reshape(pair.b.shape).contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / WEIGHTS_FILE, metadata={"format": "pt"})
    shutil.copyfile(source / CONFIG_FILE, out / CONFIG_FILE)


def _parameters(tensors: Mapping[str, torch.Tensor]) -> nn.ParameterDict:
    # A copy in torch's own strides: of a transposed rank of 1 they are others, and DDP minds.
    copies = {
        name: torch.empty_like(part, memory_format=torch.contiguous_format).copy_(part)
        for name, part in tensors.items()
    }
    return nn.ParameterDict({_key(name): nn.Parameter(part) for name, part in copies.items()})


def _key(module: str) -> str:
    """A module's name as torch takes it for a parameter's, which has no dots."""
    return module.replace(".", "/")
