"""What the executor must answer, worked out here: by PEFT, and by the readable mixture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer

from executor_service.core import RoutingMode
from executor_service.model.experts import ExpertLocation
from executor_service.model.gated import GatedModel
from executor_service.model.loading import load_expert
from executor_service.model.prompt import BuiltPrompt, PromptBuilder
from executor_service.model.reference import Instruction, MultiLoRAWithRouter
from executor_service.model.screen import PixelInput, ScreenReader
from tests.support.experts import plain_base


class PeftReference:
    """The base under one adapter at a time, by transformers and PEFT alone.

    Args:
        checkpoint: The base.
        experts: Name to expert directory.
    """

    def __init__(self, checkpoint: Path, experts: Mapping[str, Path]) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._reader = ScreenReader(checkpoint)
        (first, path), *others = experts.items()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            self._model = PeftModel.from_pretrained(
                plain_base(checkpoint), path / "adapter", adapter_name=first
            )
            for name, path in others:
                self._model.load_adapter(path / "adapter", adapter_name=name)
        self._model.eval()

    def answer(
        self, expert: str | None, system: str | None, text: str, screen: bytes, tokens: int
    ) -> tuple[int, ...]:
        """Greedy token ids by `generate`, without the end of turn; None is the bare base."""
        inputs = self._inputs(system, text, screen)
        generated = self._run(expert, "generate", do_sample=False, max_new_tokens=tokens, **inputs)
        answer = generated[0, inputs["input_ids"].shape[1] :].tolist()
        end = self._tokenizer.eos_token_id
        return tuple(answer[: answer.index(end)] if end in answer else answer)

    def score(
        self, expert: str | None, system: str | None, text: str, screen: bytes, answer: list[int]
    ) -> list[float]:
        """Log-probabilities of the given ids, by one full forward."""
        inputs = self._inputs(system, text, screen, answer)
        logits = self._run(expert, "forward", **inputs).logits[0, -len(answer) - 1 : -1]
        chosen = torch.tensor(answer)[:, None]
        return logits.log_softmax(dim=-1).gather(1, chosen)[:, 0].tolist()

    @torch.no_grad()
    def _run(self, expert: str | None, method: str, **inputs: Any) -> Any:
        if expert is None:
            with self._model.disable_adapter():
                return getattr(self._model, method)(**inputs)
        self._model.set_adapter(expert)
        return getattr(self._model, method)(**inputs)

    def _inputs(
        self, system: str | None, text: str, screen: bytes, answer: list[int] | None = None
    ) -> dict[str, torch.Tensor]:
        pixels = self._reader.read(screen)
        image = "<|image_pad|>"
        content = [{"type": "image"}, {"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        written = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        expanded = written.replace(image, image * pixels.image_tokens)
        ids = torch.tensor([self._tokenizer(expanded).input_ids + (answer or [])])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._tokenizer.convert_tokens_to_ids(image)).int(),
            "pixel_values": pixels.pixel_values,
            "image_grid_thw": torch.tensor([pixels.grid_thw]),
        }


class MixtureReference:
    """`MultiLoRAWithRouter` with gates that are given, decoded by one full forward per token.

    Args:
        checkpoint: The base.
        experts: Name to expert directory, sorted by name.
    """

    def __init__(self, checkpoint: Path, experts: Mapping[str, Path]) -> None:
        self._model = GatedModel.load(checkpoint, device="cpu", dtype=torch.float32)
        self._reader = ScreenReader(checkpoint)
        self._prompts = PromptBuilder(self._model.tokenizer)
        self._experts = self._model.expert_set(
            load_expert(self._model, ExpertLocation(name, path)) for name, path in experts.items()
        )

    def answer(
        self, gates: Mapping[str, float], system: str | None, text: str, screen: bytes, tokens: int
    ) -> tuple[int, ...]:
        """Greedy token ids under the gates, without the end of turn."""
        pixels = self._reader.read(screen)
        prompt = self._prompts.build(
            system=system, history=(), text=text, image_tokens=pixels.image_tokens
        )
        mixture = self._mixture([gates.get(name, 0.0) for name in self._experts.names])
        answer: list[int] = []
        while len(answer) < tokens:
            token = self._next(mixture, prompt, text, pixels, answer)
            if token in self._prompts.ends:
                break
            answer.append(token)
        return tuple(answer)

    def _mixture(self, gates: list[float]) -> MultiLoRAWithRouter:
        given = torch.tensor([gates])

        def policy(
            logits: torch.Tensor, mode: RoutingMode, top_k: int | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return given, given

        spec = self._model.feature_spec(text_layer=1)
        return MultiLoRAWithRouter(self._model, self._experts, spec, _NoRouter(), policy)

    @torch.no_grad()
    def _next(
        self,
        mixture: MultiLoRAWithRouter,
        prompt: BuiltPrompt,
        text: str,
        pixels: PixelInput,
        answer: list[int],
    ) -> int:
        ids, start, end = self._prompts.feature_ids(text)
        grown = BuiltPrompt((*prompt.ids, *answer), prompt.image_start, prompt.image_tokens)
        [logits] = mixture([Instruction(grown, ids, (start, end))], [pixels]).logits
        return int(logits[-1].argmax())


class _NoRouter(nn.Module):
    """Stands where a router would; the policy has its gates already."""

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        return text
