"""Chooses next tokens from logits.

Knows logits and the parameters of requests; does not know text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from executor_service.engine.work import SamplingParams
from service_chassis.errors import Internal


@dataclass(frozen=True)
class Choice:
    """A token, and its natural-log probability under the model if that was asked for."""

    token_id: int
    log_probability: float | None


class Sampler:
    """The sampling of one request, with its own source of chance.

    Args:
        params: Checked sampling parameters.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        # Reproducible by request, not secret.
        self._random = random.Random(params.seed)  # noqa: S311

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token and leaves nothing to chance."""
        return self._params.temperature == 0

    @property
    def tells(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self._params.log_probabilities

    def draw(self, logits: torch.Tensor) -> int:
        """Leave one token to chance.

        Order: temperature, then top-k, then the smallest set of the likeliest tokens whose mass
        reaches top-p; chance picks among what is left.

        Args:
            logits: float32 [vocab], on any device.

        Returns:
            The token's id.
        """
        values, ids = self._candidates(logits)
        return int(ids[self._pick(values)])

    def _candidates(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [k] in falling order, and their ids [k]."""
        count = min(self._params.top_k or len(logits), len(logits))
        values, ids = logits.sort(descending=True, stable=True)
        return values[:count], ids[:count]

    def _pick(self, values: torch.Tensor) -> int:
        # float64: a tiny temperature must not overflow.
        masses = torch.softmax(values.double() / self._params.temperature, dim=0).cumsum(dim=0)
        # Everything before the first token at which the mass reaches top_p, and that token.
        kept = int(torch.searchsorted(masses, self._params.top_p)) + 1
        masses = masses[:kept]
        point = self._random.random() * masses[-1]
        return min(int(torch.searchsorted(masses, point, right=True)), len(masses) - 1)


def choose(samplers: Sequence[Sampler], logits: torch.Tensor) -> list[Choice | Exception]:
    """Choose the next token of every row; greedy rows share one look at the device.

    Args:
        samplers: One per row.
        logits: float32 [rows, vocab].

    Returns:
        Per row its choice, or why there is none: a failure is its own row's.
    """
    likeliest = logits.max(dim=-1)
    peaks, ids = likeliest.values.tolist(), likeliest.indices.tolist()
    totals = (
        logits.logsumexp(dim=-1).tolist()
        if any(sampler.tells for sampler in samplers)
        else [math.nan] * len(samplers)
    )
    return [
        _choice(sampler, *row)
        for sampler, *row in zip(samplers, logits, peaks, ids, totals, strict=True)
    ]


def _choice(
    sampler: Sampler, logits: torch.Tensor, peak: float, likeliest: int, total: float
) -> Choice | Exception:
    if not math.isfinite(peak):
        return Internal("LOGITS_NOT_FINITE", "The model's output is not finite. Report it.")
    try:
        token_id = likeliest if sampler.greedy else sampler.draw(logits)
    except Exception as error:
        return error
    return Choice(token_id, float(logits[token_id]) - total if sampler.tells else None)
