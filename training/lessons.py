"""What stage 1 learns from: rows with labels, and rows with an agent's hints in their place.

Knows a feature table and its splits; does not know how a head is trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.distributions import Beta
from torch.nn import functional as F

from training.agent_labels import hint_loss, noise_matrix
from training.features import FeatureTable
from training.heads import RouterHead


class Lessons:
    """The rows of a table to learn from, and the loss of some of them.

    Rows are mixed in pairs, features and losses in the same shares (Zhang et al. 2018, "mixup:
    Beyond Empirical Risk Minimization", arXiv:1710.09412): between the screens that it has seen a
    head then says something in between, not what one of them alone has taught it.

    Args:
        table: The features.
        splits: Row indices of each split; `train` is learnt from.
        reliability: How often an agent is taken to be right where nothing is counted.
        mixup: Both parameters of the Beta distribution that shares come from; 0: nothing is mixed.

    Attributes:
        rows: Indices.
        weights: Of the experts, float32 [K].
    """

    def __init__(
        self,
        table: FeatureTable,
        splits: Mapping[str, torch.Tensor],
        reliability: float,
        mixup: float,
    ) -> None:
        experts, train = len(table.index.experts), splits["train"]
        # Of a single expert an agent has nothing to say.
        agents = agent_rows(table, splits) if experts > 1 else train[:0]
        self.rows = torch.cat([train, agents])
        self.weights = class_weights(table.label[train], experts)
        self._table = table
        self._shares = Beta(mixup, mixup) if mixup else None
        self._sure = table.confidence.nan_to_num(reliability)
        self._noise: torch.Tensor | None = None
        if len(self.rows) > len(train):
            both = train[table.hinted[train] >= 0]
            self._noise = noise_matrix(table.label[both], table.hinted[both], experts, reliability)

    def loss(self, head: RouterHead, batch: torch.Tensor) -> torch.Tensor:
        """Of some of the rows, each mixed with another of them; one share is drawn for all."""
        text, vision = self._table.text[batch], self._table.vision[batch]
        if self._shares is None:
            return self._loss(head(text, vision), batch)
        order, share = torch.randperm(len(batch)), float(self._shares.sample())
        logits = head(
            torch.lerp(text[order], text, share), torch.lerp(vision[order], vision, share)
        )
        return torch.lerp(self._loss(logits, batch[order]), self._loss(logits, batch), share)

    def _loss(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Of logits, by what is known of some rows; labels and hints count by their numbers."""
        table, labels = self._table, self._table.label[rows]
        if self._noise is None:
            return F.cross_entropy(logits, labels, self.weights)
        own, said = (labels >= 0).nonzero().flatten(), (labels < 0).nonzero().flatten()
        total = logits.new_zeros(())
        if len(own):
            total = total + len(own) * F.cross_entropy(logits[own], labels[own], self.weights)
        if len(said):
            hinted, sure = table.hinted[rows[said]], self._sure[rows[said]]
            total = total + len(said) * hint_loss(logits[said], hinted, sure, self._noise)
        mean: torch.Tensor = total / len(rows)
        return mean


def agent_rows(table: FeatureTable, splits: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Rows that only an agent has labelled, of images that no other split measures on."""
    measured = torch.cat([table.image[splits[name]] for name in ("validation", "held_out")])
    free = ~torch.isin(table.image, measured)
    return ((table.label < 0) & (table.hinted >= 0) & free).nonzero().flatten()


def class_weights(labels: torch.Tensor, experts: int) -> torch.Tensor:
    """Weights [K] under which every expert counts alike, however many rows it has."""
    counts = torch.bincount(labels, minlength=experts).clamp(min=1)
    return len(labels) / (experts * counts.float())
