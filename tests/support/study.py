"""Evaluations as `molora evaluate --json` states them, with rates to choose."""

from __future__ import annotations

from typing import Any

RATES = {
    "gate": 100, "oracle": 95, "top1": 95, "top2": 94, "soft": 93, "uniform": 40, "random": 30,
    "base": 0, "wrong_expert": 20,
}  # fmt: skip


def stated(
    shuffled: int = 60,
    blanked: int = 70,
    own: tuple[float, ...] = (0.9, 1.0),
    **changes: int,
) -> dict[str, Any]:
    """100 cases; of how many each mode is right, and on what share of its own each expert."""
    passed = {**RATES, **changes}
    return {
        **{f"{name}_accuracy": count / 100 for name, count in passed.items()},
        "counts": {f"{name}_accuracy": [count, 100] for name, count in passed.items()},
        "experts": {str(at): {"oracle_accuracy": share} for at, share in enumerate(own)},
        "controls": {
            "screens_shuffled": {"accuracy": {"value": shuffled / 100, "n": 100}},
            "text_blanked": {"accuracy": {"value": blanked / 100, "n": 100}},
        },
    }
