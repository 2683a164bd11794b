"""When an answer passes: expected calls against given ones; knows neither models nor files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.data.calls import ToolCall, call_from_json, split_blocks

Tolerance = tuple[float, float]
"""(x, y) in thousandths of the screen's sides."""

DEFAULT_TOLERANCE: Tolerance = (10, 10)
SCROLL_TOLERANCE: Tolerance = (100, 6)
BOX_TOLERANCE: Tolerance = (50, 50)
PIXELS_SHARE = 0.2
TIME_S = 0.5
_SIDE = 1000
_ABSURD = 1e9
_Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Rate:
    """Passed cases of n, with how far the true rate may be from it.

    Args:
        passed: 0 to `n`.
        n: Cases, at least one.
        together: So many of them are of one screen and one instruction, and no evidence each.
    """

    passed: int
    n: int
    together: int = 1

    def __post_init__(self) -> None:
        if not (self.n >= 1 and 0 <= self.passed <= self.n):
            raise ValueError(f"{self.passed} of {self.n} is no rate: give 0 <= passed <= n, n >= 1")

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.passed / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval."""
        return wilson_interval(self.passed / self.together, self.n / self.together)


def parse_calls(text: str) -> tuple[ToolCall, ...]:
    """Reads what a model answered.

    Args:
        text: Anything.

    Returns:
        The calls of its `<tool_call>` blocks in order; none if any of them is malformed,
        because an answer that cannot be read whole cannot be acted on.
    """
    try:
        return tuple(call_from_json(block) for block in split_blocks(text)[0])
    except ValueError:
        return ()


def matches(
    expected: Sequence[ToolCall], got: Sequence[ToolCall], tolerance: Tolerance | None = None
) -> bool:
    """Decides whether a case passes.

    Args:
        expected: The case's calls, at least one.
        got: The answer's calls. A call too many fails as one too few does: the agent would do it.
        tolerance: The case's own, for all its coordinates; by the action if None.

    Returns:
        True if every expected call is matched in order.

    Raises:
        ValueError: Nothing is expected.
    """
    if not expected:
        raise ValueError("a case without an expected call always passes: give at least one")
    return len(expected) == len(got) and all(
        _call_matches(want, have, tolerance or default_tolerance(want))
        for want, have in zip(expected, got, strict=True)
    )


def default_tolerance(call: ToolCall) -> Tolerance:
    """What is used where the case names no tolerance."""
    if call.action in ("scroll", "hscroll"):
        return SCROLL_TOLERANCE
    if call.action in ("get_bbox", "text_verification"):
        return BOX_TOLERANCE
    return DEFAULT_TOLERANCE


def is_vacuous(expected: Sequence[ToolCall], tolerance: Tolerance | None) -> bool:
    """Whether a case's tolerance accepts half of the screen or more.

    Args:
        expected: The case's calls; without a coordinate among them no tolerance is used.
        tolerance: The case's own.

    Returns:
        True if the window of ±tolerance, in the middle of the screen, covers half of its area or
        more. Such a case says nothing about pointing and stays out of the headline.
    """
    if tolerance is None or not any(_points(call) for call in expected):
        return False
    width, height = (min(2 * side, _SIDE) for side in tolerance)
    return width * height * 2 >= _SIDE * _SIDE


def wilson_interval(passed: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate (Wilson 1927).

    Args:
        passed: 0 to `n`.
        n: At least 1.

    Returns:
        (low, high) in [0, 1].
    """
    rate, z2 = passed / n, _Z_95 * _Z_95
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # At 0 and n of n the ends are exact; rounding would leave them 1e-17 off.
    low = 0.0 if passed == 0 else middle - half
    return low, 1.0 if passed == n else middle + half


def _call_matches(expected: ToolCall, got: ToolCall, tolerance: Tolerance) -> bool:
    """Compares the arguments that the rule names; others are not looked at."""
    if expected.name != got.name or expected.action != got.action:
        return False
    return all(
        test(expected.arguments[name], got.arguments.get(name), tolerance)
        for name, test in _TESTS.items()
        if name in expected.arguments
    )


def _points(call: ToolCall) -> bool:
    return any(name in call.arguments for name in ("coordinate", "bbox_2d", "regions"))


def _near(expected: Any, got: Any, tolerance: Tolerance) -> bool:
    """Points [x, y] and boxes [x0, y0, x1, y1]: every x within tol_x, every y within tol_y."""
    if not (isinstance(got, list | tuple) and len(got) == len(expected)):
        return False
    return all(
        _is_number(have) and abs(have - want) <= tolerance[axis % 2]
        for axis, (want, have) in enumerate(zip(expected, got, strict=True))
    )


def _regions_near(expected: Any, got: Any, tolerance: Tolerance) -> bool:
    if not (isinstance(got, list | tuple) and len(got) == len(expected)):
        return False
    return all(
        isinstance(have, Mapping) and _near(want["bbox_2d"], have.get("bbox_2d"), tolerance)
        for want, have in zip(expected, got, strict=True)
    )


def _pixels_match(expected: Any, got: Any, _: Tolerance) -> bool:
    """Same sign and within a fifth of the expected distance."""
    return (
        _is_number(got)
        and (got > 0) == (expected > 0)
        and (got < 0) == (expected < 0)
        and abs(got - expected) <= PIXELS_SHARE * abs(expected)
    )


def _time_matches(expected: Any, got: Any, _: Tolerance) -> bool:
    return _is_number(got) and abs(got - expected) <= TIME_S


def _same(expected: Any, got: Any, _: Tolerance) -> bool:
    return bool(expected == got)


def _is_number(value: Any) -> bool:
    # The bound keeps a 400-digit integer out of float arithmetic; NaN fails it as well.
    return type(value) in (int, float) and -_ABSURD < value < _ABSURD


_TESTS: Mapping[str, Callable[[Any, Any, Tolerance], bool]] = {
    "coordinate": _near,
    "bbox_2d": _near,
    "regions": _regions_near,
    "pixels": _pixels_match,
    "time": _time_matches,
    "keys": _same,
    "text": _same,
    "status": _same,
}
