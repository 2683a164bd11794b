"""Loads an expert into a model: read, match, then show that it works.

Knows the order of loading; does not know who asked for it or what runs meanwhile.

Reading needs no forward and may run on any thread beside the model's. The probe runs the model, so
it belongs on the model's thread.
"""

from __future__ import annotations

import torch

from executor_service.core import ExpertIdentity, GateVector
from executor_service.model.adapters import read_adapter
from executor_service.model.experts import (
    ExpertLocation,
    ExpertSet,
    LoadedExpert,
    check_name,
    read_about,
    targets_vision,
)
from executor_service.model.gated import GatedModel, Routing
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.screen import PixelInput
from service_chassis.errors import FailedPrecondition

_PROBE_SEED = 0
_PROBE_TEXT_TOKENS = 8


def load_expert(
    model: GatedModel,
    location: ExpertLocation,
    generation: int = 1,
    *,
    allow_no_op: bool = False,
) -> LoadedExpert:
    """Reads an expert and probes it alone; on the model's thread.

    Args:
        model: The base it is for.
        location: Name and directory.
        generation: Counts the loads of this name.
        allow_no_op: Accept an expert that changes nothing.

    Raises:
        ServiceError: As `read_expert` and `probe_expert`; nothing has changed.
    """
    expert = read_expert(model, location, generation, allow_no_op=allow_no_op)
    if not allow_no_op:
        probe_expert(model, model.expert_set([expert]), expert.identity.name)
    return expert


def read_expert(
    model: GatedModel,
    location: ExpertLocation,
    generation: int = 1,
    *,
    allow_no_op: bool = False,
) -> LoadedExpert:
    """Reads an expert's files, checks them, and matches them to the model; on any thread.

    Args:
        model: Its targets, dtype and names are looked at; it does not run.
        location: Name and directory.
        generation: Counts the loads of this name.
        allow_no_op: Accept an expert that changes nothing.

    Raises:
        InvalidArgument: A bad name, or unsupported files or features.
        DataLoss: Damaged bytes.
        FailedPrecondition: Made for another base, or without effect.
    """
    name = check_name(location.name)
    about = read_about(location)
    if about.base_digest not in (None, model.base_digest):
        raise FailedPrecondition(
            "OTHER_BASE", "The expert was trained on another base; serve that one or train anew."
        )
    adapter = read_adapter(
        location.adapter,
        model.targets,
        model.dtype,
        base_name=model.base_name,
        allow_no_op=allow_no_op,
    )
    return LoadedExpert(
        identity=ExpertIdentity(name, adapter.digest, generation),
        label=about.label,
        system_prompt=about.system_prompt,
        task_types=about.task_types,
        rank=max(pair.rank for pair in adapter.weights.values()),
        matched_modules=len(adapter.weights),
        targets_vision=targets_vision(adapter.weights, model.targets),
        source=location.directory,
        weights=adapter.weights,
    )


def probe_expert(model: GatedModel, experts: ExpertSet, name: str) -> None:
    """Shows that an expert of a set moves the model's output; on the model's thread.

    Runs one image token and a few text tokens, once with all gates zero and once with the expert
    alone.

    Args:
        model: The model.
        experts: The set that is about to be served.
        name: The expert in it.

    Raises:
        FailedPrecondition: NO_EFFECT, or ADAPTER_OVERFLOW if the output is not finite.
    """
    count = len(experts.names)
    base = _probe_logits(model, Routing(experts, (GateVector.zeros(count),)))
    one_hot = GateVector.one_hot(count, experts.names.index(name))
    adapted = _probe_logits(model, Routing(experts, (one_hot,)))
    if not torch.isfinite(adapted).all():
        raise FailedPrecondition(
            "ADAPTER_OVERFLOW",
            "The model's output is not finite under this expert; train it at a lower rate.",
        )
    if torch.equal(adapted, base):
        raise FailedPrecondition(
            "NO_EFFECT", "The expert does not move the model's output; train it first."
        )


def _probe_logits(model: GatedModel, routing: Routing) -> torch.Tensor:
    """Logits [vocab] behind a screen of one image token and a few tokens of text."""
    config = model.config
    merge = config.vision_config.spatial_merge_size
    patch = config.vision_config.patch_size
    features = config.vision_config.in_channels * config.vision_config.temporal_patch_size
    noise = torch.Generator().manual_seed(_PROBE_SEED)
    pixels = torch.rand(merge**2, features * patch**2, generator=noise) * 2 - 1
    screen = PixelInput(pixels, (1, merge, merge), merge * patch, merge * patch, 1)
    [vision] = model.encode_vision([screen], routing)
    image = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    prompt = BuiltPrompt((*image, *range(_PROBE_TEXT_TOKENS)), 1, 1)
    with torch.no_grad():
        [logits] = model.forward_rows([prompt], [vision], routing)
    return logits[-1].float()
