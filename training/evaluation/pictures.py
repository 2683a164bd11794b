"""Bars and histograms as SVG text, for pages without scripts. Knows numbers, not what they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 460
_NAMES, _NUMBERS = 112, 118
_ROW, _BAR, _GAP = 24, 12, 10
_HEIGHT, _FOOT, _LEFT = 190, 40, 44
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_STEP = 0.2


@dataclass(frozen=True)
class Bar:
    """A share as a bar.

    Attributes:
        label: Beside it.
        value: In [0, 1]; None is said in words.
        interval: Drawn as a whisker and written.
        kind: CSS class, which gives its colour.
    """

    label: str
    value: float | None
    interval: tuple[float, float] | None = None
    kind: str = "found"


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars from 0 to 1, one a row, as an `<svg>` element.

    Args:
        rows: At least one.
        title: For those who cannot see it.
    """
    height = _ROW * len(rows) + 22
    parts = [_scale(_ROW * len(rows))]
    for number, row in enumerate(rows):
        parts.append(_bar(row, number * _ROW))
    return _svg("".join(parts), height, title)


def grouped(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Groups of thin bars on a scale that suits the longest, with a legend below.

    Args:
        groups: Name and bars, the same kinds in each; at least one.
        title: For those who cannot see it.
    """
    tall = len(groups[0][1]) * _BAR + _GAP
    bottom = tall * len(groups)
    longest = max(bar.value or 0.0 for _, own in groups for bar in own)
    high = max(math.ceil(longest / _STEP), 1) * _STEP
    parts = [_scale(bottom, high)]
    for number, (name, own) in enumerate(groups):
        top = number * tall + _GAP / 2
        middle = top + len(own) * _BAR / 2 + 4
        parts.append(f'<text x="{_NAMES - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        for place, bar in enumerate(own):
            value = bar.value or 0.0
            down, at = top + place * _BAR, _across(value / high)
            parts.append(_rectangle(_NAMES, down, at - _NAMES, _BAR - 2, bar.kind))
            parts.append(f'<text class="small" x="{at + 5}" y="{down + 8}">{value:.3f}</text>')
    parts.append(_legend(groups[0][1], bottom + 34))
    return _svg("".join(parts), bottom + 44, title)


def histogram(
    values: Sequence[float], high: float, label: str, *, bins: int = 20, kind: str = "found"
) -> str:
    """How many values there are in equally wide bins over [0, high], as an `<svg>` element.

    Args:
        values: Those above `high` count in the last bin.
        high: Above 0.
        label: Of the axis.
        bins: How many.
        kind: CSS class of the columns.
    """
    counts = [0] * bins
    for value in values:
        counts[min(int(value / high * bins), bins - 1)] += 1
    most, bottom = max(*counts, 1), _HEIGHT - _FOOT
    step = (WIDTH - _LEFT - 12) / bins
    parts = [f'<line class="grid" x1="{_LEFT}" y1="{bottom}" x2="{WIDTH - 12}" y2="{bottom}"/>']
    for number, count in enumerate(counts):
        tall = count / most * (bottom - 18)
        left = _LEFT + number * step
        parts.append(_rectangle(left + 1, bottom - tall, step - 2, tall, kind))
        if count:
            middle = left + step / 2
            parts.append(
                f'<text class="small" x="{middle:.1f}" y="{bottom - tall - 4:.1f}" '
                f'text-anchor="middle">{count}</text>'
            )
    for share in _TICKS:
        parts.append(_tick(_LEFT + share * (WIDTH - _LEFT - 12), bottom + 16, share * high))
    middle = (_LEFT + WIDTH - 12) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
    )
    return _svg("".join(parts), _HEIGHT, f"Histogram of {label}")


def _svg(content: str, height: float, title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}">{content}</svg>'
    )


def _across(value: float) -> float:
    return round(_NAMES + value * (WIDTH - _NAMES - _NUMBERS), 1)


def _scale(bottom: float, high: float = 1.0) -> str:
    parts = []
    for share in _TICKS:
        at = _across(share)
        parts.append(f'<line class="grid" x1="{at}" y1="0" x2="{at}" y2="{bottom}"/>')
        parts.append(_tick(at, bottom + 15, share * high))
    return "".join(parts)


def _tick(across: float, down: float, value: float) -> str:
    return f'<text x="{across:.1f}" y="{down}" text-anchor="middle">{value:.3g}</text>'


def _bar(row: Bar, top: float) -> str:
    middle = top + _ROW / 2
    parts = [
        f'<text x="{_NAMES - 8}" y="{middle + 4}" text-anchor="end">{escape(row.label)}</text>'
    ]
    said = "no case" if row.value is None else f"{row.value:.3f}"
    if row.value is not None:
        width = _across(row.value) - _NAMES
        parts.append(_rectangle(_NAMES, middle - _BAR / 2, width, _BAR, row.kind))
    if row.interval is not None:
        low, high = (_across(end) for end in row.interval)
        said += f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}]"
        parts.append(
            f'<path class="whisker" d="M{low} {middle - 4}v8M{low} {middle}H{high}'
            f'M{high} {middle - 4}v8"/>'
        )
    parts.append(
        f'<text class="number" x="{WIDTH}" y="{middle + 4}" text-anchor="end">{said}</text>'
    )
    return "".join(parts)


def _rectangle(left: float, top: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{max(width, 0):.1f}" '
        f'height="{height:.1f}" rx="2"/>'
    )


def _legend(kinds: Sequence[Bar], top: float) -> str:
    parts, left = [], float(_NAMES)
    for bar in kinds:
        parts.append(_rectangle(left, top - 9, 10, 10, bar.kind))
        parts.append(f'<text x="{left + 15}" y="{top}">{escape(bar.label)}</text>')
        left += 34 + 6 * len(bar.label)
    return "".join(parts)
