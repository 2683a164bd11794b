"""The router's heads as torch has them: one gate vector for a request, or one a decoder layer.

Knows features and logits; does not know how a head is trained, kept or served.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from training.moments import moments

# Of the mean spread of a part's features: what one that hardly varies has at least.
_LEAST_SPREAD = 0.01


class Standardised(nn.Module):
    """Features as standard scores, of the rows that a head learns from; at first as they are.

    A maximum and a deviation differ in size by more than what tells one screen from another.

    Args:
        size: Of the features.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def learn(self, features: torch.Tensor, rows: torch.Tensor) -> None:
        """Takes mean and standard deviation of the rows [n] of features [N, size]."""
        mean, spread = moments(features, rows)
        least = (_LEAST_SPREAD * spread.mean()).clamp(min=torch.finfo(torch.float32).eps)
        self.mean.copy_(mean)
        self.spread.copy_(spread.maximum(least))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scores [n, size] of features [n, size]."""
        return (features - self.mean) / self.spread


class RouterHead(nn.Module):
    """Features to logits: each part normalised and projected, then two layers over both.

    Args:
        text_dim: Size of the text features.
        vision_dim: Size of the vision features.
        experts: Number of logits.
        width: Of each projection and of the hidden layer.
        dropout: On the joined parts and on the hidden layer.
    """

    def __init__(
        self, text_dim: int, vision_dim: int, experts: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.text_scale, self.vision_scale = Standardised(text_dim), Standardised(vision_dim)
        self.text = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.vision = nn.Sequential(nn.LayerNorm(vision_dim), nn.Linear(vision_dim, width))
        self.mix = nn.Sequential(
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, experts),
        )

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """Logits [n, K] of text [n, text_dim] and vision [n, vision_dim]."""
        parts = self.text(self.text_scale(text)), self.vision(self.vision_scale(vision))
        joined = torch.cat(parts, dim=1)  # [n, 2 * width]
        logits: torch.Tensor = self.mix(joined)
        return logits


class LayeredHead(nn.Module):
    """A head that emits L x K logits: gates of its own for every decoder layer.

    As MoLE has them (Wu et al. 2024, arXiv:2404.13628). It starts as the given head, repeated.

    Args:
        head: Its projections and hidden layer are shared by all layers.
        layers: Decoder layers, L.
    """

    def __init__(self, head: RouterHead, layers: int) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(head)
        last = self.trunk.mix[-1]
        assert isinstance(last, nn.Linear)
        self.layers = layers
        wide = nn.Linear(last.in_features, layers * last.out_features)
        with torch.no_grad():
            wide.weight.copy_(last.weight.repeat(layers, 1))
            wide.bias.copy_(last.bias.repeat(layers))
        self.trunk.mix[-1] = wide

    def forward(self, text: torch.Tensor, vision: torch.Tensor) -> torch.Tensor:
        """Logits [n, L, K] of text [n, text_dim] and vision [n, vision_dim]."""
        logits: torch.Tensor = self.trunk(text, vision)
        layered: torch.Tensor = logits.unflatten(1, (self.layers, -1))  # type: ignore[no-untyped-call]
        return layered


def whole(logits: torch.Tensor) -> torch.Tensor:
    """What a head says of a request as a whole: [n, K], or the mean over the layers of [n, L, K].

    The softmax of a mean of logits is the normalised geometric mean of the layers' distributions.
    """
    return logits.mean(dim=1) if logits.ndim == 3 else logits
