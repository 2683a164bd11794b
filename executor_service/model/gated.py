"""The base model with its experts under gates: looking, prefill, decode, scoring, features.

Knows the order of a forward; does not know files of adapters, requests, text or sampling.

Not thread-safe: one thread calls everything here. Gates are handed to a forward and taken back
when it is over; nothing about a request stays on a module.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DynamicCache

from executor_service.errors import NotLoadable
from executor_service.model import features as feature
from executor_service.model.checkpoint import base_digest, base_name, load_base
from executor_service.model.experts import ExpertSet, LoadedExpert, Routing
from executor_service.model.features import Features, FeatureSpec
from executor_service.model.layers import install
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.rows import DecodeState, RowBatch, VisionOutput, build_rows
from executor_service.model.screen import PixelInput
from executor_service.model.targets import find_targets

__all__ = ["DecodeState", "GatedModel", "Routing", "VisionOutput"]


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
        # transformers 5.24 renamed the argument; 5.40 is to drop the old name.
        arguments = inspect.signature(self._language.forward).parameters
        self._cache_argument = "cache" if "cache" in arguments else "past_key_values"
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

    @torch.no_grad()
    def prefill(
        self, prompt: BuiltPrompt, vision: VisionOutput, routing: Routing
    ) -> tuple[torch.Tensor, DecodeState]:
        """Runs a whole prompt.

        Args:
            prompt: The prompt.
            vision: Its screen, under the same gates if an expert with a gate adapts the tower.
            routing: One row.

        Returns:
            Logits of the next token, float32 [vocab], and the state to decode with.
        """
        batch = self._row(prompt, vision)
        cache = DynamicCache(config=self.config.text_config)
        with self.state.applied(routing.experts.text_updates(routing.gates)):
            hidden = self._run(batch.language_input(), cache)
        logits = self.base.lm_head(hidden[0, -1]).float()
        next_position = int(batch.positions[1:].max()) + 1
        return logits, DecodeState(cache, len(prompt.ids), next_position)

    @torch.no_grad()
    def step(self, token_id: int, state: DecodeState, routing: Routing) -> torch.Tensor:
        """Runs one token; changes `state`.

        Args:
            token_id: The token chosen last.
            state: Of this sequence.
            routing: The same as in prefill.

        Returns:
            Logits of the next token, float32 [vocab].
        """
        # [4, 1, 1]: text position, then time, height and width
        positions = torch.full((4, 1, 1), state.next_position, device=self.device)
        positions[0] = state.length
        ids = torch.tensor([[token_id]], device=self.device)
        with self.state.applied(routing.experts.text_updates(routing.gates)):
            embeds = self._language.embed_tokens(ids)
            hidden = self._run({"inputs_embeds": embeds, "position_ids": positions}, state.cache)
        state.length += 1
        state.next_position += 1
        logits: torch.Tensor = self.base.lm_head(hidden[0, -1]).float()
        return logits

    @torch.no_grad()
    def score(
        self,
        prompt: BuiltPrompt,
        completion: Sequence[int],
        vision: VisionOutput,
        routing: Routing,
    ) -> torch.Tensor:
        """Log-probabilities of a given completion, in one forward.

        Args:
            prompt: The prompt.
            completion: Token ids behind it, at least one.
            vision: The prompt's screen.
            routing: One row.

        Returns:
            Natural-log probabilities, float32 [len(completion)].
        """
        whole = BuiltPrompt(
            (*prompt.ids, *completion[:-1]), prompt.image_start, prompt.image_tokens
        )
        batch = self._row(whole, vision)
        with self.state.applied(routing.experts.text_updates(routing.gates)):
            hidden = self._run(batch.language_input())
        logits = self.base.lm_head(hidden[0, len(prompt.ids) - 1 :]).float()
        chosen = torch.tensor(list(completion), device=self.device)
        scores: torch.Tensor = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]
        return scores

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
    def features(
        self,
        text_ids: Sequence[int],
        text_span: tuple[int, int],
        vision: VisionOutput,
        spec: FeatureSpec,
    ) -> Features:
        """The router's view of an instruction and a screen, all gates zero.

        Args:
            text_ids: The feature template with the instruction in it.
            text_span: The instruction's own tokens, half-open.
            vision: The screen, encoded with all gates zero.
            spec: What to take and where.

        Raises:
            Internal: The features are not what the spec says, or not finite.
        """
        with self.state.applied({}):
            return feature.extract(self.base, self._row, text_ids, text_span, vision, spec)

    def feature_spec(
        self, *, text_layer: int, text_pooling: str = "mean", vision_source: str = "tower"
    ) -> FeatureSpec:
        """The spec of features of this model.

        Raises:
            ValueError: The model has no such layer, pooling or source.
        """
        return feature.spec_for(
            self.config, self.base_digest, text_layer, text_pooling, vision_source
        )

    def look(self, screens: Sequence[PixelInput]) -> list[VisionOutput]:
        """The tower under whatever gates are applied now; for callers that apply their own."""
        grids = torch.tensor([screen.grid_thw for screen in screens], device=self.device)
        pixels = torch.cat([screen.pixel_values for screen in screens])
        output = self.base.model.visual(pixels.to(self.device, self.dtype), grid_thw=grids)
        counts = [screen.image_tokens for screen in screens]
        embeds = output.pooler_output.split(counts)
        deepstack = [level.split(counts) for level in output.deepstack_features]
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
        hidden = self._run(batch.language_input())
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

    def _row(self, prompt: BuiltPrompt, vision: VisionOutput) -> RowBatch:
        return self._rows([prompt], [vision])

    def _run(self, inputs: dict[str, Any], cache: DynamicCache | None = None) -> torch.Tensor:
        kept = {} if cache is None else {self._cache_argument: cache}
        output = self._language(**inputs, **kept, use_cache=cache is not None)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden
