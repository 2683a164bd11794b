"""Draws pictures that no expert knows, to see whether a router says so; knows no router."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from PIL import Image

from training.screens.canvas import Canvas
from training.screens.claim_content import SURNAMES
from training.screens.geometry import Box
from training.screens.office_content import ICONS
from training.screens.theme import pick_theme

_GAP_PX = 8
_TITLE_PX = 28


def _noise(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))


def _one_colour(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    return _noise(rng, (1, 1)).resize(size)


def _photo(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Soft shapes without an edge, as a photograph out of focus has them."""
    few = (rng.randint(3, 9), rng.randint(3, 9))
    return _noise(rng, few).resize(size, Image.Resampling.BICUBIC)


def _document(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A page full of words: ink on paper, or a terminal's."""
    ground, ink = rng.choice((("#fbfbf8", "#202020"), ("#0c1a12", "#9fe8a8")))
    canvas, line_px = Canvas.blank(rng, pick_theme(rng), size, ground), rng.randint(14, 24)
    for y in range(line_px, size[1], line_px):
        words = " ".join(rng.choice(SURNAMES) for _ in range(size[0] // 40))
        if rng.random() < 0.85:
            canvas.text((16, y), words, line_px - 5, ink=ink, room_px=size[0] - 32)
    return canvas.image


def _form(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A window of the experts' own widgets that is none of theirs: the hardest of all."""
    canvas, row_px = Canvas.blank(rng, pick_theme(rng), size), rng.randint(26, 40)
    canvas.title(rng.choice(ICONS), _TITLE_PX)
    for y in range(_TITLE_PX + _GAP_PX, size[1] - row_px, row_px + _GAP_PX):
        x = _GAP_PX + canvas.step(80)
        while x + 60 < size[0]:
            box = Box(x, y, min(x + 60 + canvas.step(200), size[0] - _GAP_PX), y + row_px)
            rng.choice((canvas.button, canvas.input))(box, rng.choice(ICONS))
            x = box.x1 + _GAP_PX + canvas.step(120)
    return canvas.image


STRANGERS: Mapping[str, Callable[[random.Random, tuple[int, int]], Image.Image]] = MappingProxyType(
    {
        "noise": _noise,
        "one colour": _one_colour,
        "photo": _photo,
        "document": _document,
        "form": _form,
    }
)
"""Kind to what draws one, RGB, at a size in pixels."""
