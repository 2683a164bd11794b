"""Chooses the next token from logits.

Knows logits and the parameters of one request; does not know text.
"""

from __future__ import annotations

import random

import torch

from executor_service.engine.work import SamplingParams
from service_chassis.errors import Internal


class Sampler:
    """The sampling of one request, with its own source of chance.

    Args:
        params: Checked sampling parameters.
    """

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        # Reproducible by request, not secret.
        self._random = random.Random(params.seed)  # noqa: S311

    def sample(self, logits: torch.Tensor) -> int:
        """Choose one token. Changes the state of the source of chance unless greedy.

        Order: temperature, then top-k, then the smallest set of the likeliest tokens whose mass
        reaches top-p; chance picks among what is left.

        Args:
            logits: float32 [vocab], on any device.

        Returns:
            The token's id.

        Raises:
            Internal: The largest logit is not finite.
        """
        best, index = logits.max(dim=0)
        if not bool(torch.isfinite(best)):
            raise Internal("LOGITS_NOT_FINITE", "The model's output is not finite. Report it.")
        if self._params.temperature == 0:
            return int(index)
        values, ids = self._candidates(logits)
        return int(ids[self._draw(values)])

    def _candidates(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [k] in falling order, and their ids [k]."""
        count = min(self._params.top_k or len(logits), len(logits))
        values, ids = logits.sort(descending=True, stable=True)
        return values[:count], ids[:count]

    def _draw(self, values: torch.Tensor) -> int:
        # float64: a tiny temperature must not overflow.
        masses = torch.softmax(values.double() / self._params.temperature, dim=0).cumsum(dim=0)
        # Everything before the first token at which the mass reaches top_p, and that token.
        kept = int(torch.searchsorted(masses, self._params.top_p)) + 1
        masses = masses[:kept]
        point = self._random.random() * masses[-1]
        return min(int(torch.searchsorted(masses, point, right=True)), len(masses) - 1)
