"""What the HTML pages share: templates, and calls and screens as a page shows them.

Knows calls and files; knows no demo, no evaluation and no judgement.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from molora_client import to_pixels
from training.data.calls import ToolCall
from training.scoring import default_tolerance

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Mark:
    """Where a call points: centre and the accepted radii, in pixels."""

    x: int
    y: int
    radius_x: float
    radius_y: float


class Shown(Protocol):
    """A case that a page draws."""

    @property
    def width(self) -> int:
        """Of its screen, in pixels."""

    @property
    def height(self) -> int:
        """Of its screen, in pixels."""

    @property
    def tolerance(self) -> tuple[float, float] | None:
        """(x, y) in thousandths; None for the scoring's default."""


class Said(Protocol):
    """An answer that a page shows."""

    @property
    def text(self) -> str:
        """As it was generated."""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Those that could be read in the text."""


def render(template: Path, **values: Any) -> str:
    """Fills a template; a call is shown with the filter `call`, and a name it lacks is an error.

    Args:
        template: The file.
        values: What it names.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["call"] = call_text
    return environment.get_template(template.name).render(**values)


def call_text(call: ToolCall) -> str:
    """A call in a few words, e.g. `left_click [498, 385]`."""
    arguments = {name: value for name, value in call.arguments.items() if name != "action"}
    coordinate = arguments.pop("coordinate", None)
    parts = [call.action, *([str(coordinate)] if coordinate is not None else [])]
    return " ".join([*parts, *(f"{name}={value}" for name, value in arguments.items())])


def answer_text(answer: Said) -> str:
    """The calls of an answer; its raw text where it has none that can be read."""
    if not answer.calls:
        return answer.text.strip() or "(nothing)"
    return "; ".join(call_text(call) for call in answer.calls)


def marks(case: Shown, calls: Sequence[ToolCall]) -> list[Mark]:
    """The calls that point at a place inside the screen."""
    found = []
    for call in calls:
        try:
            pair = tuple(call.arguments["coordinate"])
            x, y = to_pixels(pair, width=case.width, height=case.height)
        except (KeyError, TypeError, ValueError):
            continue
        radius_x, radius_y = case.tolerance or default_tolerance(call)
        found.append(Mark(x, y, radius_x * case.width / 1000, radius_y * case.height / 1000))
    return found


def mark_size(case: Shown) -> float:
    """Of a mark, in pixels of the screen."""
    return max(case.width, case.height) / 36


def data_url(path: Path) -> str:
    """A PNG or JPEG file as an address that holds it."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_MIME.get(path.suffix.lower(), 'image/png')};base64,{content}"
