"""What the experts' screens look like, so that a router can tell that it knows a screen at all.

Knows vision features and labels; knows neither logits nor where a threshold should be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from training.feature_index import FeatureIndex
from training.features import FeatureTable, load_features
from training.moments import moments
from training.shown import ShownImages

# Of the spread over all experts' screens: what an expert with few of them has at least.
_LEAST_SPREAD = 0.1


class KnownScreens(nn.Module):
    """How far a screen is from those that the nearest expert was trained on.

    Vision features alone: an expert is asked many things, on screens that look alike.

    Args:
        mean: [K, vision_dim], of each expert's screens.
        spread: [K, vision_dim], above 0: their standard deviation.
    """

    mean: torch.Tensor
    spread: torch.Tensor

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    def forward(self, vision: torch.Tensor) -> torch.Tensor:
        """Distances [n] of vision [n, vision_dim]; about 1 where a screen is like the others.

        The root mean square of the standard scores, to the expert of which that is least.
        """
        scores = (vision[:, None] - self.mean) / self.spread  # [n, K, vision_dim]
        return scores.square().mean(dim=2).sqrt().amin(dim=1)

    def without(self, expert: int) -> KnownScreens:
        """What would be known if there had never been this expert; there is another one."""
        others = torch.arange(len(self.mean)) != expert
        return KnownScreens(self.mean[others], self.spread[others])


def known_screens(table: FeatureTable, rows: torch.Tensor) -> KnownScreens:
    """What the screens of some rows look like, expert by expert.

    Args:
        table: The features.
        rows: Indices; every expert has at least one.
    """
    labels = table.label[rows]
    least = (_LEAST_SPREAD * moments(table.vision, rows)[1]).clamp(min=torch.finfo().eps)
    own = [rows[labels == number] for number in range(len(table.index.experts))]
    means, spreads = zip(*(moments(table.vision, screens) for screens in own), strict=True)
    spread = torch.stack([each.maximum(least) for each in spreads])
    return KnownScreens(torch.stack(means).float(), spread.float())


@dataclass(frozen=True)
class KnownLooks:
    """What a router is to know where its head has learnt from more.

    Attributes:
        screens: What they look like.
        dataset_digest: sha256 of the records that they are of.
        shown: The images that this was learnt from, all in `train`.
    """

    screens: KnownScreens
    dataset_digest: str
    shown: ShownImages


def known_looks(directory: Path, index: FeatureIndex, shown: ShownImages) -> KnownLooks:
    """What the screens of a cache look like, expert by expert.

    Args:
        directory: Of the cache.
        index: Of the one that the head is measured on.
        shown: What the head is shown. Of what it is measured on nothing becomes known.

    Raises:
        ValueError: It is of other experts or another spec, or an expert has no screen.
    """
    table = load_features(directory)
    if table.index.names != index.names:
        raise ValueError(
            f"{directory} is of {', '.join(table.index.names) or 'no expert'}, the features are of "
            f"{', '.join(index.names)}; what is known are screens of the same experts"
        )
    if table.index.feature_spec.digest != index.feature_spec.digest:
        raise ValueError(f"{directory} holds other features than the head reads; extract it again")
    # Those that only an agent has labelled are nobody's.
    rows = ((table.label >= 0) & ~shown.measures(table.image)).nonzero().flatten()
    counts = torch.bincount(table.label[rows], minlength=len(index.names)).tolist()
    if none := [name for name, count in zip(index.names, counts, strict=True) if not count]:
        raise ValueError(
            f"{directory} holds no screen of {', '.join(none)} that the head is not measured on; "
            "extract some of each"
        )
    return KnownLooks(
        known_screens(table, rows),
        table.index.dataset_digest,
        ShownImages.of({"train": table.image[rows]}),
    )


def read_known_screens(head: bytes) -> KnownScreens | None:
    """What the ONNX file of a bundle remembers; None if it was not written here."""
    graph = onnx.load_model_from_string(head).graph
    kept = {each.name: each for each in graph.initializer}
    try:
        mean, spread = (numpy_helper.to_array(kept[f"known.{name}"]) for name in ("mean", "spread"))
    except KeyError:
        return None
    return KnownScreens(torch.from_numpy(mean.copy()), torch.from_numpy(spread.copy()))
