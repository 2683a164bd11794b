"""What an agent said about a record: which expert it took, and how sure it was. Knows no label."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

AGENT_EXPERT, AGENT_CONFIDENCE = "agent_expert", "agent_confidence"
"""Where a record's metadata holds it."""


def stated_hint(metadata: Mapping[str, Any]) -> tuple[str | None, float]:
    """What a record's metadata holds: `agent_expert` and, if the agent said, `agent_confidence`.

    Args:
        metadata: The record's.

    Returns:
        The expert's name, None without a hint; and the confidence, NaN without one.

    Raises:
        ValueError: The hint names nothing or has no possible confidence.
    """
    expert, confidence = metadata.get(AGENT_EXPERT), metadata.get(AGENT_CONFIDENCE)
    if expert is None and confidence is None:
        return None, math.nan
    if not isinstance(expert, str):
        raise ValueError(f"a record's {AGENT_EXPERT} is no name; give the expert's, or no hint")
    if confidence is None:
        return expert, math.nan
    if type(confidence) not in (int, float) or not 0 <= confidence <= 1:
        raise ValueError(f"a record's {AGENT_CONFIDENCE} is no number in [0, 1]")
    return expert, float(confidence)


def read_hint(metadata: Mapping[str, Any], experts: Sequence[str]) -> tuple[int, float]:
    """The hint that a record's metadata holds, where it names one of some experts.

    Args:
        metadata: The record's.
        experts: Names of the labels.

    Returns:
        Index of the expert, -1 without a hint; and the confidence, NaN without one.

    Raises:
        ValueError: See `stated_hint`; or the hint names another expert.
    """
    expert, confidence = stated_hint(metadata)
    if expert is None:
        return -1, confidence
    if expert not in experts:
        raise ValueError(
            f"a record's {AGENT_EXPERT} is none of {', '.join(experts)}; leave out what an agent "
            "says of other experts"
        )
    return experts.index(expert), confidence
