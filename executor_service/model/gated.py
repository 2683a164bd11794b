"""The base model with its experts under gates: looking, prefill, decode, scoring, features.

Knows the order of a forward; does not know files of adapters, requests, text or sampling.

Not thread-safe: one thread calls everything here. Gates are handed to a forward and taken back
when it is over; nothing about a request stays on a module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import AutoTokenizer

from executor_service.core import GateVector
from executor_service.errors import NotLoadable
from executor_service.model import features as feature
from executor_service.model.checkpoint import base_digest, base_name, load_base
from executor_service.model.decoder import Decoder
from executor_service.model.experts import ExpertSet, LoadedExpert, Routing
from executor_service.model.features import FeatureRow, Features, FeatureSpec
from executor_service.model.layers import install
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.rows import RowBatch, VisionOutput, build_rows
from executor_service.model.screen import PixelInput
from executor_service.model.slots import SlotCache
from executor_service.model.static import DecodeBackend, StaticDecoder
from executor_service.model.targets import find_targets

__all__ = ["DecodeRow", "GatedModel", "Routing", "VisionOutput"]


@dataclass(frozen=True)
class DecodeRow:
    """One answer's next token.

    Attributes:
        token_id: The token chosen last.
        slot: Where its keys and values are.
        length: Tokens that the slot holds.
        position: Where the token stands, the same in all three axes of M-RoPE.
        gates: The same as in prefill.
    """

    token_id: int
    slot: int
    length: int
    position: int
    gates: GateVector


class GatedModel:
    """A frozen Qwen3-VL whose linears take experts under gates.

    Args:
        base: A `Qwen3VLForConditionalGeneration` in evaluation mode; its modules' forwards are
            replaced.
        tokenizer: The checkpoint's.
        base_digest: Digest of the checkpoint.
        base_name: Its hub name, if known.

    Attributes:
        base: The transformers model.
        config: Its config.
        targets: The modules that experts may adapt, by name.
        state: Through which gates reach the layers.
        num_layers: LLM decoder layers.
    """

    def __init__(
        self, base: Any, *, tokenizer: Any, base_digest: str, base_name: str | None = None
    ) -> None:
        self.base = base
        self.config = base.config
        self.tokenizer = tokenizer
        self.base_digest = base_digest
        self.base_name = base_name
        self.num_layers = int(base.config.text_config.num_hidden_layers)
        self.device = base.device
        self.dtype: torch.dtype = base.dtype
        self.targets = find_targets(base)
        self.state = install(base, self.targets.values())
        self._language = base.model.language_model
        self._decoder = Decoder(self._language)
        self._static: WeakKeyDictionary[SlotCache, StaticDecoder] = WeakKeyDictionary()
        self._merge = int(base.config.vision_config.spatial_merge_size)

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, dtype: torch.dtype) -> GatedModel:
        """Loads a checkpoint directory.

        Args:
            checkpoint: Holds config, safetensors and tokenizer as transformers writes them.
            device: Torch device.
            dtype: Of weights and computation.

        Raises:
            NotLoadable: The directory holds no usable Qwen3-VL.
        """
        base = load_base(checkpoint, device=device, dtype=dtype)
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise NotLoadable("the checkpoint's tokenizer cannot be read; copy it again") from error
        return cls(
            base,
            tokenizer=tokenizer,
            base_digest=base_digest(checkpoint),
            base_name=base_name(checkpoint),
        )

    def expert_set(self, experts: Iterable[LoadedExpert] = ()) -> ExpertSet:
        """A snapshot of experts on this model's device.

        Raises:
            AlreadyExists: Two experts have the same content.
        """
        return ExpertSet(experts, self.targets, self.device)

    @torch.no_grad()
    def encode_vision(
        self, screens: Sequence[PixelInput], routing: Routing | None
    ) -> list[VisionOutput]:
        """Runs the vision tower once over several screens.

        Args:
            screens: Preprocessed screens.
            routing: One gate vector per screen; None for all gates zero.

        Returns:
            One output per screen.
        """
        patches = tuple(screen.pixel_values.shape[0] for screen in screens)
        tower = routing and routing.experts.tower_updates(routing.gates, patches, self._merge**2)
        with self.state.applied(tower or {}):
            return self.look(screens)

    def slot_cache(self, *, slots: int, length: int, decode: DecodeBackend = "eager") -> SlotCache:
        """Room for the keys and values of answers.

        Args:
            slots: Answers at once.
            length: Tokens of the longest prompt and answer together.
            decode: How `decode` runs over these slots: kernel by kernel, in static shapes, or in
                static shapes as CUDA graphs.
        """
        config = self.config.text_config
        cache = SlotCache(config, slots=slots, length=length, device=self.device, dtype=self.dtype)
        if decode != "eager":
            self._static[cache] = StaticDecoder(
                self._language,
                self.base.lm_head,
                self._decoder,
                self.state,
                capture=decode == "cuda_graph",
            )
        return cache

    @torch.no_grad()
    def row(self, prompt: BuiltPrompt, vision: VisionOutput) -> RowBatch:
        """A prompt and its screen as one row, to be prefilled in parts.

        Args:
            prompt: The prompt.
            vision: Its screen, under the same gates if an expert with a gate adapts the tower.
        """
        return self._rows([prompt], [vision])

    @torch.no_grad()
    def prefill(
        self, row: RowBatch, span: tuple[int, int], slots: SlotCache, slot: int, routing: Routing
    ) -> torch.Tensor:
        """Runs a part of a row and leaves its keys and values in a slot.

        Args:
            row: A single row.
            span: The part, half-open; what lies before it is in the slot already.
            slots: Where to keep.
            slot: Which one.
            routing: One gate vector.

        Returns:
            Hidden states behind the final norm, [tokens of the part, hidden].
        """
        with self.state.applied(routing.experts.text_updates(routing.gates)):
            return self._decoder.run(row.part(*span), slots.chunk(slot, *span))[0]

    @torch.no_grad()
    def decode(
        self, rows: Sequence[DecodeRow], slots: SlotCache, experts: ExpertSet
    ) -> torch.Tensor:
        """Runs one token of each of several answers, each under its own gates.

        Gates per layer run eagerly, whatever these slots were made for.

        Args:
            rows: At least one, no two in one slot.
            slots: Their keys and values; one more token is kept in each of their slots.
            experts: The snapshot that all of them hold.

        Returns:
            Logits of each next token, float32 [rows, vocab].
        """
        static = self._static.get(slots)
        if static is not None and not any(row.gates.layers for row in rows):
            return static.decode(rows, slots, experts)
        kept = slots.step([row.slot for row in rows], [row.length for row in rows])
        at = [row.slot - kept.first for row in rows]
        gates = [GateVector.zeros(len(experts.names))] * kept.count
        table = torch.zeros(3, kept.count, dtype=torch.long)  # token id, length, position
        for place, row in zip(at, rows, strict=True):
            gates[place] = row.gates
            table[:, place] = torch.tensor((row.token_id, row.length, row.position))
        ids, lengths, positions = table.to(self.device)
        visible = torch.arange(kept.longest, device=self.device) <= lengths[:, None]
        batch = RowBatch(
            embeds=self._language.embed_tokens(ids[:, None]),
            positions=torch.stack([lengths, *[positions] * 3])[:, :, None],
            mask=visible[:, None, None],
            image_mask=visible[:, :0],
            deepstack=(),
            spans=((0, 1),) * kept.count,
            images=((0, 0),) * kept.count,
        )
        with self.state.applied(experts.text_updates(tuple(gates))):
            hidden = self._decoder.run(batch, kept)
        return self.logits(hidden[at, 0])

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [..., vocab], of hidden states behind the final norm."""
        logits: torch.Tensor = self.base.lm_head(hidden).float()
        return logits

    @torch.no_grad()
    def log_probabilities(self, hidden: torch.Tensor, next_ids: Sequence[int]) -> list[float]:
        """Natural-log probability of each token behind its state; `hidden` is [n, hidden]."""
        chosen = torch.tensor(list(next_ids), device=self.device)
        scores = self.logits(hidden).log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
        return [float(score) for score in scores.tolist()]

    def forward_rows(
        self,
        prompts: Sequence[BuiltPrompt],
        vision: Sequence[VisionOutput],
        routing: Routing,
        *,
        left_padded: bool = False,
    ) -> list[torch.Tensor]:
        """One forward over rows of any length, each under its own gates.

        Args:
            prompts: One per row.
            vision: The vision output of each row.
            routing: One gate vector per row.
            left_padded: Pad shorter rows on the left; the result is the same.

        Returns:
            Logits of every position, [tokens of the row, vocab] per row, without the padding.
        """
        with self.state.applied(routing.experts.text_updates(routing.gates)):
            return self.read(prompts, vision, left_padded=left_padded)

    @torch.no_grad()
    def features(self, rows: Sequence[FeatureRow], spec: FeatureSpec) -> list[Features]:
        """The router's view of instructions and screens, all gates zero, in one forward.

        Args:
            rows: Instructions with their screens, encoded with all gates zero.
            spec: What to take and where.

        Raises:
            Internal: The features are not what the spec says, or not finite.
        """
        with self.state.applied({}):
            return feature.extract(self._decoder, self._rows, rows, spec, self.config)

    def feature_spec(
        self, *, text_layer: int, text_pooling: str = "mean", vision_source: str = "tower",
        vision_pooling: str = "mean",
    ) -> FeatureSpec:  # fmt: skip
        """The spec of features of this model.

        Raises:
            ValueError: The model has no such layer, pooling or source.
        """
        return feature.spec_for(
            self.config, self.base_digest, text_layer, text_pooling, vision_source, vision_pooling
        )

    def look(self, screens: Sequence[PixelInput]) -> list[VisionOutput]:
        """The tower under whatever gates are applied now; for callers that apply their own."""
        grids = torch.tensor([screen.grid_thw for screen in screens], device=self.device)
        pixels = torch.cat([screen.pixel_values for screen in screens])
        output = self.base.model.visual(pixels.to(self.device, self.dtype), grid_thw=grids)
        counts = [screen.image_tokens for screen in screens]
        embeds = _apart(output.pooler_output, counts)
        deepstack = [_apart(level, counts) for level in output.deepstack_features]
        return [
            VisionOutput(embeds[at], tuple(level[at] for level in deepstack), screen.grid_thw)
            for at, screen in enumerate(screens)
        ]

    def read(
        self,
        prompts: Sequence[BuiltPrompt],
        vision: Sequence[VisionOutput],
        *,
        left_padded: bool = False,
    ) -> list[torch.Tensor]:
        """The language model under whatever gates are applied now; see `forward_rows`."""
        batch = self._rows(prompts, vision, left_padded=left_padded)
        hidden = self._decoder.run(batch)
        return [
            self.base.lm_head(row[start:end])
            for row, (start, end) in zip(hidden, batch.spans, strict=True)
        ]

    def _rows(
        self,
        prompts: Sequence[BuiltPrompt],
        vision: Sequence[VisionOutput],
        *,
        left_padded: bool = False,
    ) -> RowBatch:
        embedding = self._language.embed_tokens
        return build_rows(prompts, vision, embedding, self._merge, left_padded=left_padded)


def _apart(rows: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
    """Rows [tokens, hidden] of each screen; copies, so that none keeps its neighbours."""
    parts = torch.split(rows, list(counts))
    return [part.clone() for part in parts] if len(parts) > 1 else list(parts)
