"""Mean and deviation of many rows, some at a time. Knows numbers, not what they are of."""

from __future__ import annotations

import torch

# Rows that are copied at once: of the 8B's features 70 MB.
ROWS_AT_ONCE = 256


def moments(features: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of some rows, in double precision.

    Args:
        features: [N, size].
        rows: Indices [n], at least one.

    Returns:
        Both float64 [size]; the deviation is that of these rows, not an estimate for others.
    """
    parts = torch.split(rows, ROWS_AT_ONCE)
    mean, squares = features.new_zeros((2, features.shape[1]), dtype=torch.float64)
    for part in parts:
        mean += features[part].double().sum(dim=0)
    mean /= len(rows)
    for part in parts:
        squares += (features[part].double() - mean).square_().sum(dim=0)
    return mean, (squares / len(rows)).sqrt()
