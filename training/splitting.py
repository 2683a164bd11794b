"""The splits of a feature cache: what a head learns from, stops by, and is measured on.

Knows images, experts and what a head was shown before; knows no head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from training.features import FeatureTable
from training.lessons import agent_rows
from training.shown import SPLITS, ShownImages
from training.stage1_config import Stage1Config


def split_by_image(
    table: FeatureTable, config: Stage1Config, shown: ShownImages | None = None
) -> dict[str, torch.Tensor]:
    """Row indices of `train`, `validation` and `held_out`: no image is in two of them.

    Each expert's images are split by the same shares, at least one image each. An image that
    serves several experts counts for the first row's. Rows without a label are in none.

    Args:
        table: The features.
        config: Seed and shares.
        shown: What the head that is started from was shown: those images stay in their splits.

    Raises:
        ValueError: An expert has fewer than three images, or none in some split.
    """
    generator = torch.Generator().manual_seed(config.seed)
    labelled = (table.label >= 0).nonzero().flatten()
    images, image_of_row = torch.unique(table.image[labelled], return_inverse=True)
    expert_of_image = torch.empty(len(images), dtype=torch.int64)
    # Written backwards, so that the first row of an image is what stays.
    expert_of_image[image_of_row.flip(0)] = table.label[labelled].flip(0)
    split_of_image = (shown or ShownImages.of({})).splits_of(images)
    for number, name in enumerate(table.index.names):
        every = (expert_of_image == number).nonzero().flatten()
        if len(every) < 3:
            raise ValueError(
                f"{name} has {len(every)} images; three are the least that can be split"
            )
        own = every[split_of_image[every] < 0]
        own = own[torch.randperm(len(own), generator=generator)]
        validation = max(1, round(len(own) * config.validation_share))
        held_out = max(1, round(len(own) * config.held_out_share))
        split_of_image[own[:validation]] = 1
        split_of_image[own[validation : validation + held_out]] = 2
        split_of_image[own[validation + held_out :]] = 0
        for split, part in enumerate(SPLITS):
            if not (split_of_image[every] == split).any():
                raise ValueError(
                    f"no image of {name} is left for {part}: the head that is started from has "
                    "seen the others; give features of more images"
                )
    split_of_row = split_of_image[image_of_row]
    return {name: labelled[split_of_row == number] for number, name in enumerate(SPLITS)}


def shown_by(table: FeatureTable, splits: Mapping[str, torch.Tensor]) -> ShownImages:
    """The images that stage 1 shows a head, those that only agents have labelled too.

    Args:
        table: The features.
        splits: Row indices of each split.
    """
    rows = {**splits, "train": torch.cat([splits["train"], agent_rows(table, splits)])}
    return ShownImages.of({name: table.image[part] for name, part in rows.items()})
