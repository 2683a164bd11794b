"""Line charts as SVG text, for pages without scripts. Knows points and axes, not what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 44
_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and from where to where."""

    label: str
    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value is: 0 at the low end, 1 at the high one; outside of it at the edge."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True)
class Line:
    """Points to join, in order.

    Attributes:
        label: For the legend.
        kind: CSS class, which gives its colour and dashes.
        points: (x, y) pairs.
        dots: Mark each point.
    """

    label: str
    kind: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def chart(lines: Sequence[Line], x: Axis, y: Axis, *, falling: bool = False) -> str:
    """One chart as an `<svg>` element; the page's style sheet colours its classes.

    Args:
        lines: Drawn in order, the last on top.
        x: The horizontal axis.
        y: The vertical axis.
        falling: Lines begin high, so the legend is on the right.
    """
    legend = _legend(lines, falling=falling)
    parts = [_grid(x, y), *(_line(line, x, y) for line in lines), legend]
    box = f"0 0 {WIDTH} {HEIGHT}"
    title = escape(f"{y.label} over {x.label}")
    return (
        f'<svg class="chart" viewBox="{box}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    )


def _place(point: tuple[float, float], x: Axis, y: Axis) -> tuple[float, float]:
    across = _LEFT + x.share(point[0]) * (WIDTH - _LEFT - _RIGHT)
    up = y.share(point[1]) * (HEIGHT - _TOP - _BOTTOM)
    return round(across, 1), round(HEIGHT - _BOTTOM - up, 1)


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for tick in range(_TICKS + 1):
        at_x = x.low + (x.high - x.low) * tick / _TICKS
        at_y = y.low + (y.high - y.low) * tick / _TICKS
        across, bottom = _place((at_x, y.low), x, y)
        left, up = _place((x.low, at_y), x, y)
        parts += [
            f'<line class="grid" x1="{across}" y1="{_TOP}" x2="{across}" y2="{bottom}"/>',
            f'<line class="grid" x1="{left}" y1="{up}" x2="{WIDTH - _RIGHT}" y2="{up}"/>',
            f'<text x="{across}" y="{bottom + 16}" text-anchor="middle">{at_x:.3g}</text>',
            f'<text x="{left - 6}" y="{up + 4}" text-anchor="end">{at_y:.3g}</text>',
        ]
    middle_x, middle_y = (_LEFT + WIDTH - _RIGHT) / 2, (_TOP + HEIGHT - _BOTTOM) / 2
    parts += [
        f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>',
        f'<text transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(y.label)}</text>",
    ]
    return "".join(parts)


def _line(line: Line, x: Axis, y: Axis) -> str:
    places = [_place(point, x, y) for point in line.points]
    path = " ".join(f"{across},{down}" for across, down in places)
    drawn = f'<polyline class="{line.kind}" points="{path}"/>'
    if line.dots:
        dots = (f'<circle class="{line.kind}" cx="{a}" cy="{d}" r="3.5"/>' for a, d in places)
        drawn += "".join(dots)
    return drawn


def _legend(lines: Sequence[Line], *, falling: bool) -> str:
    parts = []
    left, anchor, beside = (_LEFT + 8, "start", 30)
    if falling:
        left, anchor, beside = (WIDTH - _RIGHT - 32, "end", -6)
    for number, line in enumerate(lines):
        down = _TOP + 14 + 17 * number
        parts += [
            f'<line class="{line.kind}" x1="{left}" y1="{down}" x2="{left + 24}" y2="{down}"/>',
            f'<text x="{left + beside}" y="{down + 4}" text-anchor="{anchor}">'
            f"{escape(line.label)}</text>",
        ]
    return "".join(parts)
