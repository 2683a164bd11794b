"""Draws the Edit Claim dialog, 1155x853 px; knows no tasks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from training.screens import claim_content as content
from training.screens.geometry import Box
from training.screens.theme import Theme, add_jpeg_noise, pick_theme

SIZE = (1155, 853)
GRID_ROWS = (3, 9)
DROPDOWN_ITEMS = (5, 9)
TITLE_PX = 30
ROW_PX = 24
GRID_LINES = 10  # the column titles and nine rows, used or not
ITEM_PX = 16
DROPDOWN_WIDTH_PX = 150


@dataclass(frozen=True)
class Row:
    """One procedure of the grid.

    Args:
        number: 1 for the first row, as drawn in the column "#".
        date: MM/DD/YYYY.
        provider: E.g. `Dr. Smith`.
        code: E.g. `D1110`.
        box: The whole row.
    """

    number: int
    date: str
    provider: str
    code: str
    box: Box


@dataclass(frozen=True)
class ClaimScreen:
    """A drawn dialog and where everything in it is.

    Args:
        image: RGB.
        rows: The procedures from the top.
        grid: The procedures grid with its column titles and scroll bar.
        buttons: Bottom buttons by caption.
        tabs: By caption.
        dropdown: Provider or form to item, from the top; None while no list is open.
        dropdown_of: Label of the field whose list is open.
        fields: Input boxes by label, e.g. `Billing Provider`.
        theme: What it was drawn with.
    """

    image: Image.Image
    rows: tuple[Row, ...]
    grid: Box
    buttons: dict[str, Box]
    tabs: dict[str, Box]
    dropdown: dict[str, Box] | None
    dropdown_of: str | None
    fields: dict[str, Box]
    theme: Theme


@dataclass
class _Canvas:
    """What the drawing functions share while one dialog is drawn."""

    rng: random.Random
    theme: Theme
    draw: ImageDraw.ImageDraw
    width: int
    height: int
    fields: dict[str, Box] = field(default_factory=dict)

    def text(
        self, at: tuple[int, int], text: str, size_px: int, *, bold: bool = False,
        ink: str | None = None, anchor: str = "lm",
    ) -> None:  # fmt: skip
        font = self.theme.font(size_px, bold=bold)
        self.draw.text(at, text, fill=ink or self.theme.palette.text, font=font, anchor=anchor)

    def step(self, up_to_px: int) -> int:
        """An offset on the dialog's 8 px raster."""
        return self.rng.randrange(0, up_to_px + 1, 8)


def draw_claim_window(
    rng: random.Random,
    *,
    theme: Theme | None = None,
    size: tuple[int, int] | None = None,
    dropdown: bool | None = None,
) -> ClaimScreen:
    """Draws one dialog.

    Args:
        rng: Decides everything that is not given.
        theme: One of `THEMES` if None.
        size: (width, height) in pixels, at least `SIZE`, which is the default.
        dropdown: Whether a list is open, of providers or of forms; even odds if None.

    Returns:
        The picture and the boxes of its parts.

    Raises:
        ValueError: The size is smaller than the dialog.
    """
    theme = theme or pick_theme(rng)
    width, height = size or SIZE
    if width < SIZE[0] or height < SIZE[1]:
        raise ValueError(f"{width}x{height} cannot hold the dialog: give at least {SIZE}")
    image = Image.new("RGB", (width, height), theme.palette.window)
    canvas = _Canvas(rng, theme, ImageDraw.Draw(image), width, height)
    opened = rng.random() < 0.5 if dropdown is None else dropdown

    _draw_title(canvas)
    _draw_header_fields(canvas)
    grid, rows = _draw_grid(canvas, top=264 + canvas.step(72))
    tabs = _draw_tabs(canvas, top=grid.y1 + 12 + canvas.step(16))
    buttons = _draw_buttons(canvas)
    owner = rng.choice(content.LIST_LABELS) if opened else None
    items = _draw_dropdown(canvas, owner) if owner else None
    image = add_jpeg_noise(image, rng, share=0.5)
    return ClaimScreen(image, rows, grid, buttons, tabs, items, owner, canvas.fields, theme)


def _draw_title(canvas: _Canvas) -> None:
    colours = canvas.theme.palette
    canvas.draw.rectangle((0, 0, canvas.width, TITLE_PX), fill=colours.accent)
    name = f"{canvas.rng.choice(content.SURNAMES)}, {canvas.rng.choice(content.FIRST_NAMES)}"
    title = f"Edit Claim - {name}"
    canvas.text((10, TITLE_PX // 2), title, 15, bold=True, ink=colours.on_accent)
    canvas.text((canvas.width - 18, TITLE_PX // 2), "X", 15, ink=colours.on_accent, anchor="mm")


def _draw_header_fields(canvas: _Canvas) -> None:
    """Three columns of labelled inputs; those with a list have an arrow."""
    rng = canvas.rng
    left, top = 16 + canvas.step(16), TITLE_PX + 16 + canvas.step(16)
    values = content.header_values(rng)
    for column, labels in enumerate(content.HEADER_COLUMNS):
        x = left + column * 376 + (canvas.step(24) if column else 0)
        for line, label in enumerate(labels):
            y = top + line * 30
            canvas.text((x, y + 11), label, 13)
            box = Box(x + 130, y, x + 130 + (200 if column == 0 else 190), y + 22)
            canvas.fields[label] = box
            _draw_input(canvas, box, values[label], arrow=label in content.LIST_LABELS)


def _draw_input(canvas: _Canvas, box: Box, value: str, *, arrow: bool) -> None:
    colours = canvas.theme.palette
    canvas.draw.rectangle(box.edges, fill=colours.panel, outline=colours.border)
    canvas.text((box.x0 + 5, box.centre[1]), value, 13)
    if arrow:
        side = Box(box.x1 - 20, box.y0 + 1, box.x1 - 1, box.y1 - 1)
        x, y = side.centre
        canvas.draw.rectangle(side.edges, fill=colours.button)
        canvas.draw.polygon([(x - 5, y - 2), (x + 5, y - 2), (x, y + 4)], fill=colours.text)


def _draw_grid(canvas: _Canvas, top: int) -> tuple[Box, tuple[Row, ...]]:
    rng, colours, draw = canvas.rng, canvas.theme.palette, canvas.draw
    left = 12 + canvas.step(16)
    widths = content.COLUMN_WIDTHS_PX
    bar = 18
    grid = Box(left, top, left + sum(widths) + bar, top + GRID_LINES * ROW_PX)
    draw.rectangle(grid.edges, fill=colours.panel, outline=colours.border)
    draw.rectangle((grid.x0, top, grid.x1 - 1, top + ROW_PX - 1), fill=colours.header)
    procedures = content.procedures(rng, rng.randint(*GRID_ROWS))

    rows = []
    for index, procedure in enumerate(procedures):
        y = top + (index + 1) * ROW_PX
        box = Box(grid.x0, y, grid.x1 - bar, y + ROW_PX)
        rows.append(Row(index + 1, procedure.date, procedure.provider, procedure.code, box))
    x = grid.x0
    for column, (name, width) in enumerate(zip(content.COLUMNS, widths, strict=True)):
        canvas.text((x + 4, top + ROW_PX // 2), name, 12, bold=True)
        for row, procedure in zip(rows, procedures, strict=True):
            cell = procedure.cells[column]
            at = (x + 4, row.box.centre[1])
            if column == 0:
                canvas.text(at, cell, 16, bold=True)
            elif cell:
                canvas.text(at, cell, 12)
        x += width
        draw.line((x, top, x, grid.y1 - 1), fill=colours.border)
    for line in range(1, len(rows) + 2):
        y = top + line * ROW_PX
        draw.line((grid.x0, y, grid.x1 - bar, y), fill=colours.border)
    _draw_scroll_bar(canvas, Box(grid.x1 - bar, top, grid.x1, grid.y1))
    return grid, tuple(rows)


def _draw_scroll_bar(canvas: _Canvas, bar: Box) -> None:
    colours = canvas.theme.palette
    canvas.draw.rectangle(bar.edges, fill=colours.header, outline=colours.border)
    thumb = bar.y0 + 20 + canvas.rng.randint(0, 120)
    edges = (bar.x0 + 2, thumb, bar.x1 - 3, thumb + 60)
    canvas.draw.rectangle(edges, fill=colours.button, outline=colours.border)


def _draw_tabs(canvas: _Canvas, top: int) -> dict[str, Box]:
    colours, tabs = canvas.theme.palette, {}
    left = 12 + canvas.step(16)
    selected = canvas.rng.randrange(len(content.TABS))
    pane = Box(left, top + 26, canvas.width - 24, canvas.height - 60)
    canvas.draw.rectangle(pane.edges, fill=colours.panel, outline=colours.border)
    for index, caption in enumerate(content.TABS):
        box = Box(left + index * 132, top, left + index * 132 + 130, top + 26)
        fill = colours.panel if index == selected else colours.header
        canvas.draw.rectangle(box.edges, fill=fill, outline=colours.border)
        canvas.text(box.centre, caption, 14, anchor="mm")
        tabs[caption] = box
    for line, note in enumerate(canvas.rng.sample(content.NOTES, 3)):
        canvas.text((pane.x0 + 14, pane.y0 + 22 + line * 24), note, 13)
    return tabs


def _draw_buttons(canvas: _Canvas) -> dict[str, Box]:
    """Some of the other captions from the left, then OK and Cancel at the right end."""
    rng, buttons = canvas.rng, {}
    top = canvas.height - 46 + canvas.step(8)
    captions = rng.sample(content.OTHER_BUTTONS, rng.randint(4, 6))
    left = 16 + canvas.step(24)
    for index, caption in enumerate(captions):
        x = left + index * 112
        buttons[caption] = Box(x, top, x + 100, top + 30)
    right = canvas.width - 16 - canvas.step(16)
    buttons["OK"] = Box(right - 212, top, right - 112, top + 30)
    buttons["Cancel"] = Box(right - 100, top, right, top + 30)
    colours = canvas.theme.palette
    for caption, box in buttons.items():
        canvas.draw.rectangle(box.edges, fill=colours.button, outline=colours.border)
        canvas.text(box.centre, caption, 15, bold=True, anchor="mm")
    return buttons


def _draw_dropdown(canvas: _Canvas, label: str) -> dict[str, Box]:
    """The open list under one of the inputs: all the forms, or some providers."""
    rng, colours, items = canvas.rng, canvas.theme.palette, {}
    names: Sequence[str] = content.FORMS
    if label in content.PROVIDER_LABELS:
        names = rng.sample(content.PROVIDERS, rng.randint(*DROPDOWN_ITEMS))
    x, y = canvas.fields[label].x0, canvas.fields[label].y1
    frame = Box(x, y, x + DROPDOWN_WIDTH_PX, y + len(names) * ITEM_PX + 2)
    canvas.draw.rectangle(frame.edges, fill=colours.panel, outline=colours.text)
    for index, name in enumerate(names):
        top = y + 1 + index * ITEM_PX
        items[name] = box = Box(x, top, x + DROPDOWN_WIDTH_PX, top + ITEM_PX)
        canvas.text((x + 6, box.centre[1]), name, 14, bold=True)
    return items
