"""Colours and fonts that screens are drawn with; knows no layout."""

from __future__ import annotations

import colorsys
import functools
import io
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFont

FONTS = Path(__file__).resolve().parent / "fonts"

_FILES = {
    ("dejavu", False): "DejaVuSans.ttf",
    ("dejavu", True): "DejaVuSans-Bold.ttf",
    ("roboto", False): "Roboto-Regular.ttf",
    ("roboto", True): "Roboto-Bold.ttf",
}


@dataclass(frozen=True)
class Palette:
    """Named colours of a window, as `#rrggbb`."""

    name: str
    window: str
    panel: str
    header: str
    border: str
    text: str
    faint: str
    accent: str
    on_accent: str
    button: str


@dataclass(frozen=True)
class Theme:
    """A palette and a font family.

    Args:
        palette: The colours.
        family: `dejavu` or `roboto`.
    """

    palette: Palette
    family: str

    @property
    def name(self) -> str:
        """E.g. `dark-dejavu`."""
        return f"{self.palette.name}-{self.family}"

    def font(self, size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
        """The theme's font at a size in pixels."""
        # DejaVu's glyphs are about a tenth larger than Roboto's at the same nominal size.
        nominal = size_px if self.family == "dejavu" else round(size_px * 1.1)
        return _load_font(_FILES[self.family, bold], nominal)


@functools.lru_cache(maxsize=128)
def _load_font(file: str, size_px: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine is in every Pillow build, so a seed draws the same pixels everywhere.
    return ImageFont.truetype(FONTS / file, size_px, layout_engine=ImageFont.Layout.BASIC)


_LIGHT = Palette(
    "light", "#f7f7f7", "#ffffff", "#ececec", "#b4b4b4", "#101010", "#c8c8c8", "#1f6fc4",
    "#ffffff", "#e6e6e6",
)  # fmt: skip
_CLASSIC = Palette(
    "classic", "#d4d0c8", "#ffffff", "#c4c0b8", "#808080", "#000000", "#c0bcb4", "#0a246a",
    "#ffffff", "#d4d0c8",
)  # fmt: skip
_BLUE = Palette(
    "blue", "#dce8f6", "#f4f9ff", "#b9d1ec", "#6f95c0", "#0a1f3c", "#bccbdc", "#c2410c",
    "#ffffff", "#c9dcf2",
)  # fmt: skip
_DARK = Palette(
    "dark", "#26282c", "#1a1b1e", "#34373d", "#5c6068", "#f4f4f4", "#55585e", "#4f9df5",
    "#000000", "#3d4148",
)  # fmt: skip
_SEPIA = Palette(
    "sepia", "#efe6d2", "#faf4e4", "#e0d2b0", "#a8946a", "#35270f", "#d2c6a6", "#8a3b12",
    "#ffffff", "#e4d8ba",
)  # fmt: skip
_FOREST = Palette(
    "forest", "#1f2f28", "#15211c", "#2c4438", "#587a68", "#eef8f0", "#4a6054", "#e0b040",
    "#101010", "#34503f",
)  # fmt: skip

_LILAC = Palette(
    "lilac", "#e9e2f2", "#fbf8ff", "#d3c4e6", "#8f78ad", "#2a1440", "#cdbfe0", "#0f766e",
    "#ffffff", "#ddd0ec",
)  # fmt: skip
_MIDNIGHT = Palette(
    "midnight", "#101a30", "#0a1222", "#1c2a4a", "#4a6090", "#eaf0ff", "#3c4c70", "#e85d9a",
    "#101010", "#22335a",
)  # fmt: skip

THEMES: tuple[Theme, ...] = tuple(
    Theme(palette, family)
    for palette in (_LIGHT, _CLASSIC, _BLUE, _DARK)
    for family in ("dejavu", "roboto")
)
"""What training screens are drawn with."""

UNSEEN_THEMES: tuple[Theme, ...] = (Theme(_SEPIA, "roboto"), Theme(_FOREST, "dejavu"))
"""Held back: no training split uses them, so they show what a model does on a new look. What a
head reads and how it is trained was chosen by them."""

FRESH_THEMES: tuple[Theme, ...] = (Theme(_LILAC, "dejavu"), Theme(_MIDNIGHT, "roboto"))
"""Held back from choices as well, but for one: as the miniature's router was right in too few of
them, it learns from twice as many screens."""


# Of the themes that `any_theme` draws.
_KNOWN_SHARE = 0.4


def pick_theme(rng: random.Random) -> Theme:
    """Draws one of the training themes."""
    return rng.choice(THEMES)


def any_theme(rng: random.Random) -> Theme:
    """Draws a training theme, or more often one that is made up: what to learn looks from."""
    if rng.random() < _KNOWN_SHARE:
        return pick_theme(rng)
    return Theme(_made_up_palette(rng), rng.choice(("dejavu", "roboto")))


def _made_up_palette(rng: random.Random) -> Palette:
    """Colours of one hue, legible on each other, with an accent of another; light or dark."""
    dark, hue = rng.random() < 0.4, rng.random()
    saturation = rng.choice((0.0, rng.uniform(0, 0.6)))
    window = rng.uniform(0.08, 0.25) if dark else rng.uniform(0.75, 0.97)
    away = 1 if dark else -1  # from the window's lightness towards the text's
    accent = rng.uniform(0.25, 0.65)

    def tint(lightness: float, part: float = 1.0) -> str:
        return _hex(hue, lightness, part * saturation)

    return Palette(
        "made-up",
        window=tint(window),
        panel=tint(window + rng.uniform(-0.06, 0.05) if dark else window + rng.uniform(0, 0.12)),
        header=tint(window + away * rng.uniform(0.03, 0.12)),
        border=tint(window + away * rng.uniform(0.15, 0.38)),
        text=tint(rng.uniform(0.88, 1) if dark else rng.uniform(0, 0.15), 0.3),
        faint=tint(window + away * rng.uniform(0.1, 0.22)),
        accent=_hex(rng.random(), accent, rng.uniform(0.4, 0.9)),
        on_accent="#ffffff" if accent < 0.5 else "#000000",
        button=tint(window + away * rng.uniform(0.0, 0.12)),
    )


def _hex(hue: float, lightness: float, saturation: float) -> str:
    channels = colorsys.hls_to_rgb(hue, min(1.0, max(0.0, lightness)), saturation)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def add_jpeg_noise(image: Image.Image, rng: random.Random, *, share: float) -> Image.Image:
    """Passes a share of the images through JPEG at quality 60-95.

    Args:
        image: RGB.
        rng: Consumed by the same amount whether or not the image is changed.
        share: Probability of the round trip.

    Returns:
        The image itself, or what JPEG left of it, RGB.
    """
    roll, quality = rng.random(), rng.randint(60, 95)
    if roll >= share:
        return image
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer, formats=("JPEG",)).convert("RGB")
