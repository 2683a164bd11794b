"""What stages 2 and 3 stand on: base, experts, records and the head that is started from.

Knows how a configuration becomes these parts; trains nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from executor_service.model.experts import ExpertSet, discover_experts
from executor_service.model.features import FeatureSpec
from executor_service.model.gated import GatedModel
from executor_service.model.loading import load_expert
from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from router_service import core
from training.conversations import Conversations, labelled_records
from training.feature_index import index_digest
from training.head_file import (
    HeadShape,
    SavedHead,
    head_digest,
    load_head,
    new_head,
)
from training.heads import LayeredHead, RouterHead
from training.processes import on_cpu
from training.run_config import Router, RunConfig
from training.run_file import PROCESSES, digest_of
from training.shown import ShownImages

NEW_HEAD = Router(
    width=128, dropout=0.1, text_layer=2, text_pooling="mean", vision_source="levels",
    vision_pooling="statistics",
)  # fmt: skip
_HOOK = ("text_layer", "text_pooling", "vision_source", "vision_pooling")


@dataclass(frozen=True)
class Setting:
    """The parts of a run, on this process's device.

    Attributes:
        config: With everything filled in that was left to what was found.
        spec: What the router reads.
        head: What is trained, and its shape.
        anchor: The head that was started from; None for a new one.
        left_out: Records that `rows` does not have, because a bundle is measured on their screens.
    """

    config: RunConfig
    accelerator: Accelerator
    model: GatedModel
    experts: ExpertSet
    rows: Conversations
    spec: FeatureSpec
    head: SavedHead
    anchor: SavedHead | None
    left_out: int = 0


def prepare(config: RunConfig) -> Setting:
    """Loads everything that a run needs, and saves its configuration.

    Raises:
        ValueError: Experts, records and head do not belong together, or the folder holds another
            run.
        NotLoadable: The base cannot be used.
        ServiceError: An expert cannot be used.
        BundleError: The bundle's files do not fit together.
    """
    anchor = load_head(config.start) if config.start else None
    config = resolved(config, anchor)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu())
    config.accumulation(accelerator.num_processes)
    with accelerator.main_process_first():
        config.save()
    device, dtype = accelerator.device, getattr(torch, config.dtype)
    model = GatedModel.load(config.model, device=str(device), dtype=dtype)
    locations = discover_experts(None, config.lora_modules, {})
    experts = model.expert_set(load_expert(model, location) for location in locations)
    with accelerator.main_process_first():
        config.pin(
            {
                "model": model.base_digest,
                "experts": experts.digest,
                "records": digest_of(config.records),
                "start": head_digest(anchor) if anchor else "",
                "features": index_digest(config.features),
                "known": index_digest(config.known),
                # Each has noise of its own.
                PROCESSES: str(accelerator.num_processes),
            }
        )
    if config.gradient_checkpointing:
        _recompute(model.base)
    spec, head = _head(config, model, experts, anchor)
    systems = {expert.identity.name: expert.system_prompt for expert in experts.experts}
    rows = Conversations(
        labelled_records(config.records, experts.names),
        config.images,
        ScreenReader(config.model),
        PromptBuilder(model.tokenizer),
        systems,
    )
    return Setting(config, accelerator, model, experts, rows, spec, head, anchor)


def resolved(config: RunConfig, anchor: SavedHead | None) -> RunConfig:
    """A configuration with the experts' paths and names and the router's shape filled in.

    Args:
        config: As it was given.
        anchor: The head that is started from.

    Raises:
        ValueError: It names an adapter that was not found, or another router than the head's.
    """
    found = discover_experts(config.experts_root, config.lora_modules, os.environ)
    directories = {location.name: location.directory for location in found}
    names = sorted(config.adapters or directories)
    if missing := [name for name in names if name not in directories]:
        raise ValueError(f"no expert is called {', '.join(missing)}; name its directory")
    if not names:
        raise ValueError("no expert was found; give experts_root or lora_modules")
    router = NEW_HEAD if anchor is None else _router_of(anchor.shape)
    given = config.router.model_dump(exclude_none=True)
    for field in ("width", *_HOOK) if anchor else ():
        if given.get(field, getattr(router, field)) != getattr(router, field):
            raise ValueError(
                f"router.{field} is {given[field]}, but that of the head in {config.start} is "
                f"{getattr(router, field)}; leave it out or train another head"
            )
    return config.model_copy(
        update={
            "experts_root": None,
            "lora_modules": {name: directories[name] for name in names},
            "adapters": tuple(names),
            "router": router.model_copy(update=given),
        }
    )


def _router_of(shape: HeadShape) -> Router:
    hook: dict[str, Any] = {field: getattr(shape.feature_spec, field) for field in _HOOK}
    return Router(width=shape.width, dropout=shape.dropout, **hook)


def _head(
    config: RunConfig, model: GatedModel, experts: ExpertSet, anchor: SavedHead | None
) -> tuple[FeatureSpec, SavedHead]:
    """The spec of the features, and the head to train: the anchor's weights, or random ones."""
    router = config.router
    assert router.text_layer
    assert router.width
    assert router.dropout is not None
    spec = model.feature_spec(
        text_layer=router.text_layer,
        text_pooling=router.text_pooling or "",
        vision_source=router.vision_source or "",
        vision_pooling=router.vision_pooling or "",
    )
    stated = core.FeatureSpec(**vars(spec))
    layers = model.num_layers if router.per_layer else 0
    shape = HeadShape(experts.names, stated, router.width, router.dropout, layers)
    if anchor is None:
        torch.manual_seed(config.seed)
        return spec, SavedHead(new_head(shape), shape, ShownImages.of({}))
    _check_same(anchor.shape, shape)
    # A new one, because the dropout is the run's.
    head = new_head(replace(shape, layers=anchor.shape.layers))
    head.load_state_dict(anchor.head.state_dict())
    if layers and isinstance(head, RouterHead):
        head = LayeredHead(head, layers)
    return spec, SavedHead(head, shape, anchor.shown, anchor.temperature)


def _check_same(anchor: HeadShape, shape: HeadShape) -> None:
    if anchor.experts != shape.experts:
        raise ValueError(
            f"the head that is started from knows {', '.join(anchor.experts)}, the run mixes "
            f"{', '.join(shape.experts)}; name the same adapters"
        )
    if anchor.feature_spec.digest != shape.feature_spec.digest:
        raise ValueError(
            "the head that is started from reads features of another base; name that base, or "
            "train stage 1 on this one"
        )
    if anchor.layers and not shape.layers:
        raise ValueError("the head that is started from has gates per layer; set router.per_layer")


def _recompute(base: nn.Module) -> None:
    """Activation checkpointing, which works in training mode only; the base has no dropout."""
    # transformers 5.24 renamed it.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(base, name) for name in names if hasattr(base, name))
    enable({"use_reentrant": False})
    base.train()
