"""What the router sees of a prompt and its screen, and the spec that pins it down.

Knows poolings and where features are taken; does not know the router's head, gates or experts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from executor_service.model.decoder import Decoder
from executor_service.model.prompt import FEATURE_TEMPLATE_VERSION, BuiltPrompt
from executor_service.model.rows import RowBatch, VisionOutput
from service_chassis.errors import Internal

TEXT_POOLINGS = ("mean", "last", "first")
VISION_SOURCES = ("tower", "deepstack", "levels", "fused")
VISION_POOLINGS = ("mean", "statistics")
_STATISTICS = 4


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that decides what a feature is. A head is valid for one digest only.

    Attributes:
        text_layer: Features are the hidden states behind this many decoder layers, from 1.
        text_pooling: `mean` over the instruction's own tokens, `last` of them, or `first`, the
            template's token 0, which is the same for every prompt.
        vision_source: `tower` (what stands in for the image tokens), `deepstack` (every DeepStack
            feature, one after the other), `levels` (the tower's, then every DeepStack feature) or
            `fused` (hidden states of the image tokens behind `text_layer` layers, of a pass over
            screen and instruction).
        vision_pooling: `mean` over the image tokens, or `statistics`: their mean, standard
            deviation, maximum and minimum, one after the other. A small window on a large desktop
            is a few tokens of many: lost in a mean, not in an extreme.
        text_dim: Length of the text features.
        vision_dim: Length of the vision features.
        base_digest: Digest of the base model.
        template_version: Version of the feature template.
    """

    text_layer: int
    text_pooling: str
    vision_source: str
    vision_pooling: str
    text_dim: int
    vision_dim: int
    base_digest: str
    template_version: str

    def __post_init__(self) -> None:
        known = (
            ("text_pooling", TEXT_POOLINGS),
            ("vision_source", VISION_SOURCES),
            ("vision_pooling", VISION_POOLINGS),
        )
        for field, values in known:
            if getattr(self, field) not in values:
                raise ValueError(f"{field} is one of {', '.join(values)}")
        if min(self.text_layer, self.text_dim, self.vision_dim) < 1:
            raise ValueError("text_layer and both dimensions count from 1")

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """The spec that `to_json` wrote.

        Raises:
            ValueError: The text is not such a spec, or a field is missing, unknown or wrong.
        """
        values = json.loads(text)
        kinds = {field.name: int if field.type == "int" else str for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise ValueError("a feature spec has exactly these fields: " + ", ".join(kinds))
        wrong = [name for name, kind in kinds.items() if type(values[name]) is not kind]
        if wrong:
            raise ValueError(f"wrong type in a feature spec: {', '.join(wrong)}")
        return cls(**values)


@dataclass(frozen=True)
class Features:
    """Float32 CPU tensors: text [text_dim], vision [vision_dim]."""

    text: torch.Tensor
    vision: torch.Tensor


def spec_for(
    config: Any, base_digest: str, text_layer: int, text_pooling: str, vision_source: str,
    vision_pooling: str,
) -> FeatureSpec:  # fmt: skip
    """The spec of features of a model with this config.

    Raises:
        ValueError: The model has no such layer, pooling or source.
    """
    if text_layer > config.text_config.num_hidden_layers:
        raise ValueError(f"text_layer is at most {config.text_config.num_hidden_layers}")
    hidden = int(config.text_config.hidden_size)
    levels = len(config.vision_config.deepstack_visual_indexes)
    parts = {"deepstack": levels, "levels": 1 + levels}.get(vision_source, 1)
    return FeatureSpec(
        text_layer=text_layer,
        text_pooling=text_pooling,
        vision_source=vision_source,
        vision_pooling=vision_pooling,
        text_dim=hidden,
        vision_dim=hidden * parts * (_STATISTICS if vision_pooling == "statistics" else 1),
        base_digest=base_digest,
        template_version=FEATURE_TEMPLATE_VERSION,
    )


@dataclass(frozen=True)
class FeatureRow:
    """One instruction in the feature template, and its screen, encoded with all gates zero.

    `span` is the half-open range of the instruction's own tokens in `ids`.
    """

    ids: tuple[int, ...]
    span: tuple[int, int]
    vision: VisionOutput


def extract(
    decoder: Decoder,
    build: Callable[[Sequence[BuiltPrompt], Sequence[VisionOutput]], RowBatch],
    rows: Sequence[FeatureRow],
    spec: FeatureSpec,
    config: Any,
) -> list[Features]:
    """Runs what the spec asks for, all rows together, and pools it; gates are the caller's.

    Args:
        decoder: The language model's layers.
        build: Prompts and their screens to input rows.
        rows: What to look at, at least one.
        spec: What to take and where.
        config: The model's.

    Raises:
        Internal: The features are not what the spec says, or not finite.
    """
    no_screen = [VisionOutput(row.vision.embeds[:0], (), (1, 0, 0)) for row in rows]
    batch = build([BuiltPrompt(row.ids, len(row.ids), 0) for row in rows], no_screen)
    hidden = decoder.after(batch, spec.text_layer)
    texts = [
        pool_text(states, row.span, spec.text_pooling)
        for states, row in zip(hidden, rows, strict=True)
    ]
    if spec.vision_source == "fused":
        levels: list[tuple[torch.Tensor, ...]] = [
            (states,) for states in _fused(decoder, build, rows, spec, config)
        ]
    else:
        levels = [_levels(row.vision, spec.vision_source) for row in rows]
    screens = [pool_vision(each, spec.vision_pooling) for each in levels]
    return [checked(text, seen, spec) for text, seen in zip(texts, screens, strict=True)]


def pool_text(hidden: torch.Tensor, span: tuple[int, int], pooling: str) -> torch.Tensor:
    """Hidden states [T, hidden] to one vector [hidden], float32.

    Raises:
        Internal: The instruction has no tokens.
    """
    start, end = span
    if not 0 <= start < end <= hidden.shape[0]:
        raise Internal("EMPTY_FEATURE_SPAN", "The instruction has no tokens. Report it.")
    if pooling == "first":
        return hidden[0].float()
    if pooling == "last":
        return hidden[end - 1].float()
    return hidden[start:end].float().mean(dim=0)


def pool_vision(levels: Sequence[torch.Tensor], pooling: str) -> torch.Tensor:
    """Image tokens [T, hidden] of each level to one vector, float32, one level after the other."""
    return torch.cat([_pooled(tokens.float(), pooling) for tokens in levels])


def _pooled(tokens: torch.Tensor, pooling: str) -> torch.Tensor:
    mean = tokens.mean(dim=0)
    if pooling == "mean":
        return mean
    # Of the tokens that there are, so that a single one has a deviation: none.
    spread = tokens.std(dim=0, correction=0)
    return torch.cat([mean, spread, tokens.amax(dim=0), tokens.amin(dim=0)])


def _levels(vision: VisionOutput, source: str) -> tuple[torch.Tensor, ...]:
    return {
        "tower": (vision.embeds,),
        "deepstack": vision.deepstack,
        "levels": (vision.embeds, *vision.deepstack),
    }[source]


def checked(text: torch.Tensor, vision: torch.Tensor, spec: FeatureSpec) -> Features:
    """Features that are what the spec says.

    Raises:
        Internal: FEATURES_SHAPE or FEATURES_NOT_FINITE; nothing is ever filled in.
    """
    if text.shape != (spec.text_dim,) or vision.shape != (spec.vision_dim,):
        raise Internal("FEATURES_SHAPE", "Features have another shape than the spec. Report it.")
    features = Features(text.cpu(), vision.cpu())
    if not (features.text.isfinite().all() and features.vision.isfinite().all()):
        raise Internal("FEATURES_NOT_FINITE", "Features are not finite. Report it.")
    return features


def _fused(
    decoder: Decoder,
    build: Callable[[Sequence[BuiltPrompt], Sequence[VisionOutput]], RowBatch],
    rows: Sequence[FeatureRow],
    spec: FeatureSpec,
    config: Any,
) -> list[torch.Tensor]:
    """Hidden states of each screen's tokens behind the spec's layer, [image tokens, hidden]."""
    prompts = [
        _with_screen(row.ids, row.span[0], row.vision.embeds.shape[0], config) for row in rows
    ]
    batch = build(prompts, [row.vision for row in rows])
    hidden = decoder.after(batch, spec.text_layer)
    return [states[start:end] for states, (start, end) in zip(hidden, batch.images, strict=True)]


def _with_screen(ids: Sequence[int], at: int, image_tokens: int, config: Any) -> BuiltPrompt:
    """The feature template with the screen before the instruction, as in a user turn."""
    image = [config.vision_start_token_id, *[config.image_token_id] * image_tokens]
    row = (*ids[:at], *image, config.vision_end_token_id, *ids[at:])
    return BuiltPrompt(row, at + 1, image_tokens)
