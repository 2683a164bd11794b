"""Tool calls as text and as objects; knows neither records nor scoring."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COMPUTER_USE = "computer_use"
_POINTED = frozenset(
    {
        "left_click", "right_click", "middle_click", "double_click", "triple_click", "mouse_move",
        "left_click_drag", "scroll", "hscroll",
    }
)  # fmt: skip


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_REQUIRED: Mapping[str, tuple[str, Callable[[object], bool], str]] = {
    "scroll": ("pixels", _is_number, "a number"),
    "hscroll": ("pixels", _is_number, "a number"),
    "key": ("keys", _is_texts, "a list of texts"),
    "type": ("text", lambda value: isinstance(value, str), "a text"),
    "ocr": ("text", lambda value: isinstance(value, str), "a text"),
    "answer": ("text", lambda value: isinstance(value, str), "a text"),
    "wait": ("time", _is_number, "seconds, a number"),
    "terminate": ("status", lambda value: value in ("success", "failure"), "success or failure"),
}
ACTIONS = _POINTED | _REQUIRED.keys()
_OPEN = re.compile(r"<tool_call>\s*")
_CLOSE = re.compile(r"\s*</tool_call>")
_DECODER = json.JSONDecoder()
_FULL_SCALE = 1000


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool.

    Args:
        name: `computer_use`, `get_bbox` or `text_verification`.
        arguments: As in the JSON, unknown ones included.
    """

    name: str
    arguments: Mapping[str, Any]

    @classmethod
    def computer_use(cls, action: str, **arguments: Any) -> ToolCall:
        """A `computer_use` call, its action first as the records write it."""
        return cls(COMPUTER_USE, {"action": action, **arguments})

    @property
    def action(self) -> str:
        """What the call does: the action of `computer_use`, else the tool's name."""
        return str(self.arguments.get("action")) if self.name == COMPUTER_USE else self.name

    def check(self) -> None:
        """Holds the call against the table of actions.

        Raises:
            ValueError: The tool or the action is unknown, or an argument it needs is missing or
                malformed.
        """
        if self.name == COMPUTER_USE:
            self._check_action()
        elif self.name == "get_bbox":
            _check_box(self.arguments)
        elif self.name == "text_verification":
            regions = self.arguments.get("regions")
            if not (isinstance(regions, list) and len(regions) == 2):
                raise ValueError("`regions` of text_verification must be a list of two")
            for region in regions:
                _check_box(region)
        else:
            raise ValueError("the tool is unknown: use computer_use, get_bbox or text_verification")

    def _check_action(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"the action is unknown: use one of {', '.join(sorted(ACTIONS))}")
        if self.action in _POINTED and not _is_integers(self.arguments.get("coordinate"), 2):
            raise ValueError(f"{self.action} needs `coordinate`, two integers in 0-1000")
        if self.action in _REQUIRED:
            name, is_right, what = _REQUIRED[self.action]
            if not is_right(self.arguments.get(name)):
                raise ValueError(f"{self.action} needs `{name}`, {what}")


def format_calls(calls: Iterable[ToolCall]) -> str:
    """Writes calls as the target of a record: one `<tool_call>` block after the other."""
    return "\n".join(
        "<tool_call>\n"
        + json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        + "\n</tool_call>"
        for call in calls
    )


def read_calls(text: str) -> tuple[ToolCall, ...]:
    """Reads a record's target.

    Args:
        text: `<tool_call>` blocks and white space, nothing else.

    Returns:
        The calls in order, at least one.

    Raises:
        ValueError: There is other text or no call, or a call is malformed.
    """
    values, rest = split_blocks(text)
    if rest.strip():
        raise ValueError("the answer holds text beside its <tool_call> blocks: remove it")
    calls = tuple(call_from_json(value) for value in values)
    if not calls:
        raise ValueError("the answer holds no <tool_call> block: write one")
    for call in calls:
        call.check()
    return calls


def split_blocks(text: str) -> tuple[list[object], str]:
    """Takes the `<tool_call>` blocks out of a text.

    Returns:
        The JSON values inside the blocks in order, and the text around them.

    Raises:
        ValueError: A block does not hold exactly one JSON value, or is not closed.
    """
    values, rest, at = [], [], 0
    while opening := _OPEN.search(text, at):
        rest.append(text[at : opening.start()])
        try:
            # The decoder finds the value's end, so a string may hold "</tool_call>".
            value, end = _DECODER.raw_decode(text, opening.end())
        except (ValueError, RecursionError):
            raise ValueError("a <tool_call> block must hold one JSON object") from None
        closing = _CLOSE.match(text, end)
        if not closing:
            raise ValueError("a <tool_call> block must be closed after its JSON object")
        values.append(value)
        at = closing.end()
    return values, "".join([*rest, text[at:]])


def call_from_json(value: object) -> ToolCall:
    """Turns `{"name": ..., "arguments": {...}}` into a call without checking its arguments.

    An argument that is null is none.

    Raises:
        ValueError: It has another shape.
    """
    if isinstance(value, dict):
        name, arguments = value.get("name"), value.get("arguments")
        if isinstance(name, str) and isinstance(arguments, dict):
            given = {key: part for key, part in arguments.items() if part is not None}
            return ToolCall(name, given)
    raise ValueError('a call must be an object {"name": ..., "arguments": {...}}')


def _check_box(region: object) -> None:
    if not (isinstance(region, Mapping) and _is_integers(region.get("bbox_2d"), 4)):
        raise ValueError("`bbox_2d` must be four integers in 0-1000")


def _is_integers(value: object, count: int) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == count
        and all(type(item) is int and 0 <= item <= _FULL_SCALE for item in value)
    )
