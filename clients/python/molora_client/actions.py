"""Reads the tool calls of an answer and maps their coordinates to pixels.

Knows no server: it works on the text of a `Generation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
FULL_SCALE = 1000
_DECODER = json.JSONDecoder()


class ToolCallError(ValueError):
    """The answer's tool calls cannot be read. Names the place, never the answer's text."""


@dataclass(frozen=True)
class ToolCall:
    """One call that the model asks for; unknown arguments are kept."""

    name: str
    arguments: Mapping[str, Any]

    @property
    def action(self) -> str:
        """The `action` of a computer_use call, e.g. `left_click`; empty for other tools."""
        return str(self.arguments.get("action", ""))

    @property
    def coordinate(self) -> tuple[int, int] | None:
        """`coordinate` as (x, y) in 0-1000, each axis on its own scale; None if it has none."""
        value = self.arguments.get("coordinate")
        if not (isinstance(value, Sequence) and len(value) == 2):
            return None
        x, y = value
        if not all(isinstance(part, int) and not isinstance(part, bool) for part in (x, y)):
            return None
        return (x, y)


def parse_tool_calls(text: str) -> tuple[ToolCall, ...]:
    """Reads every `<tool_call>` block of an answer, in order.

    Args:
        text: The whole text of a completed generation.

    Returns:
        The calls; empty if the text has no block.

    Raises:
        ToolCallError: A block is not closed, is not JSON, or is not `{name, arguments}`.
    """
    calls: list[ToolCall] = []
    at = text.find(OPENING)
    while at >= 0:
        number = len(calls) + 1
        body = _next_word(text, at + len(OPENING))
        try:
            # The decoder finds the end of the JSON, so a string in it may hold the closing mark.
            value, end = _DECODER.raw_decode(text, body)
        except (ValueError, RecursionError):
            raise ToolCallError(f"tool call {number} is not JSON") from None
        end = _next_word(text, end)
        if not text.startswith(CLOSING, end):
            raise ToolCallError(f"tool call {number} is not closed by {CLOSING}")
        calls.append(_tool_call(value, number))
        at = text.find(OPENING, end)
    return tuple(calls)


def to_pixels(coordinate: tuple[int, int], *, width: int, height: int) -> tuple[int, int]:
    """Maps 0-1000 coordinates to a pixel of the screen.

    Args:
        coordinate: (x, y), each in 0-1000 of its own side.
        width: Screen width in pixels.
        height: Screen height in pixels.

    Returns:
        (x, y) in pixels, inside the screen.

    Raises:
        ValueError: A coordinate is outside 0-1000.
    """
    for part in coordinate:
        if not 0 <= part <= FULL_SCALE:
            raise ValueError(f"coordinate {part} is outside 0-{FULL_SCALE}")
    x, y = coordinate
    return (
        min(width - 1, round(x * width / FULL_SCALE)),
        min(height - 1, round(y * height / FULL_SCALE)),
    )


def _next_word(text: str, at: int) -> int:
    """Index of the first character from `at` on that is no white space."""
    return len(text) - len(text[at:].lstrip())


def _tool_call(value: object, number: int) -> ToolCall:
    name = value.get("name") if isinstance(value, dict) else None
    arguments = value.get("arguments") if isinstance(value, dict) else None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ToolCallError(f"tool call {number} is not {{name, arguments}}")
    return ToolCall(name, arguments)
