"""Results as JSON holds them. Knows rates, data classes and enums; knows no result by name."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from training.scoring import Rate


def plain(value: Any) -> Any:
    """A result as dictionaries, lists, text and numbers; a rate with its count and interval."""
    if isinstance(value, Rate):
        interval = [*value.interval]
        return {"value": value.value, "passed": value.passed, "n": value.n, "wilson_95": interval}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return value
