"""Builds token ids for the model from the parts of a prompt.

Knows the chat layout of Qwen3-VL and the tokenizer; does not know pixels, experts or gates.

Ids are put together by parts: control tokens come from this file, and what a caller wrote is
encoded by a tokenizer that has no added tokens at all. `<|image_pad|>` in an instruction is
therefore thirteen ordinary characters. For text without control tokens the result equals the
checkpoint's own `apply_chat_template` with the image placeholder expanded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from service_chassis.errors import InvalidArgument

FEATURE_TEMPLATE_VERSION = "user-turn-1"
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One earlier turn: role `user` or `assistant`, and its literal text."""

    role: str
    text: str


@dataclass(frozen=True)
class BuiltPrompt:
    """Token ids of a prompt, and where the screen's placeholder sits in them.

    The image token ids occupy `ids[image_start : image_start + image_tokens]`, and nowhere else.
    The system turn is the first `system_tokens` ids.
    """

    ids: tuple[int, ...]
    image_start: int
    image_tokens: int
    system_tokens: int = 0


class PromptBuilder:
    """Turns prompt parts into ids.

    Args:
        tokenizer: The checkpoint's tokenizer (a fast one).
    """

    def __init__(self, tokenizer: Any) -> None:
        full: Tokenizer = tokenizer.backend_tokenizer
        self._literal = _without_added_tokens(full)
        self._answer = Tokenizer.from_str(full.to_str())
        self._answer.encode_special_tokens = True  # "special" ones become text; tool calls stay
        self._trusted = full
        self._im_start = _control_id(full, "<|im_start|>")
        self.end_of_turn = _control_id(full, "<|im_end|>")
        # Either ends an answer, as the public checkpoints' generation_config.json says.
        ends = (full.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>"))
        self.ends = frozenset(end for end in ends if end is not None)
        self._vision_start = _control_id(full, "<|vision_start|>")
        self._vision_end = _control_id(full, "<|vision_end|>")
        self._image_pad = _control_id(full, "<|image_pad|>")

    def build(
        self,
        *,
        system: str | None,
        history: Sequence[Turn],
        text: str,
        image_tokens: int,
        trusted_system: bool = False,
    ) -> BuiltPrompt:
        """The whole prompt: system, history, then one user turn with the screen before the text.

        Args:
            system: System prompt; None for no system turn.
            history: Earlier turns, oldest first.
            text: The instruction.
            image_tokens: Placeholder tokens of the screen.
            trusted_system: The system prompt is the operator's (from `expert.json` or the server's
                settings), so tool-call tokens written in it are the tokens that the expert was
                trained with. A caller's system prompt is literal like everything else.

        Returns:
            Ids that end where the assistant's answer begins.

        Raises:
            InvalidArgument: A history role is neither user nor assistant.
        """
        ids: list[int] = []
        if system is not None:
            encode = self._encode_trusted if trusted_system else self.encode_literal
            ids += [self._im_start, *encode(f"system\n{system}"), *self._end()]
        system_tokens = len(ids)
        for turn in history:
            if turn.role not in ROLES:
                raise InvalidArgument(
                    "UNKNOWN_ROLE", "A history turn's role is user or assistant.", field="history"
                )
            ids += [self._im_start, *self.encode_literal(f"{turn.role}\n{turn.text}"), *self._end()]
        ids += [self._im_start, *self.encode_literal("user\n"), self._vision_start]
        image_start = len(ids)
        ids += [self._image_pad] * image_tokens
        ids += [self._vision_end, *self.encode_literal(text), *self._end()]
        ids += [self._im_start, *self.encode_literal("assistant\n")]
        return BuiltPrompt(tuple(ids), image_start, image_tokens, system_tokens)

    def feature_ids(self, text: str) -> tuple[tuple[int, ...], int, int]:
        """The feature template: the instruction alone, as a user turn.

        Args:
            text: The instruction.

        Returns:
            The ids, and the half-open range of the instruction's own tokens in them.
        """
        head = [self._im_start, *self.encode_literal("user\n")]
        body = self.encode_literal(text)
        return (*head, *body, *self._end()), len(head), len(head) + len(body)

    def encode_literal(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token."""
        return _encode(self._literal, text)

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer as the model writes it: `<tool_call>` is one token."""
        return _encode(self._answer, text)

    def _encode_trusted(self, text: str) -> list[int]:
        return _encode(self._trusted, text)

    def _end(self) -> list[int]:
        return [self.end_of_turn, *self.encode_literal("\n")]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except (UnicodeEncodeError, TypeError) as error:
        raise InvalidArgument(
            "NOT_UNICODE", "Text holds a lone surrogate; send valid Unicode."
        ) from error


def _without_added_tokens(full: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer that knows its trained vocabulary only."""
    spec = json.loads(full.to_str())
    spec["added_tokens"] = []
    spec["post_processor"] = None
    return Tokenizer.from_str(json.dumps(spec))


def _control_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}: this is not a Qwen3-VL checkpoint")
    return int(found)
