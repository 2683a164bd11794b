"""The images that a head was shown, and in which split: kept with it, so that none measures it.

Knows numbers of images (`data.origin.image_number`) and one file; knows neither heads nor features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from router_service.bundle import load_bundle

SHOWN_FILE = "shown.safetensors"
SPLITS = ("train", "validation", "held_out")
_TRAIN, _HELD_OUT = SPLITS.index("train"), SPLITS.index("held_out")


@dataclass(frozen=True)
class ShownImages:
    """Images by number. A head has learnt from `train`, and `validation` has said when to stop.

    Attributes:
        image: [n] int64, ascending, none twice.
        split: [n] int64, index into `SPLITS`.
    """

    image: torch.Tensor
    split: torch.Tensor

    @classmethod
    def of(cls, images: Mapping[str, torch.Tensor | Sequence[int]]) -> ShownImages:
        """Split name to numbers; one that is in several counts as of the first of `SPLITS`."""
        parts = [torch.as_tensor(images.get(name, ()), dtype=torch.int64) for name in SPLITS]
        splits = [torch.full((len(part),), split) for split, part in enumerate(parts)]
        image, place = torch.unique(torch.cat(parts), return_inverse=True)
        last = torch.full((len(image),), len(SPLITS))
        return cls(image, last.scatter_reduce(0, place, torch.cat(splits), "amin"))

    def __len__(self) -> int:
        return len(self.image)

    def splits_of(self, images: torch.Tensor) -> torch.Tensor:
        """Of numbers [m] the index into `SPLITS`, int64 [m]; -1 for one that was not shown."""
        if not len(self):
            return torch.full_like(images, -1)
        place = torch.searchsorted(self.image, images).clamp(max=len(self) - 1)
        return torch.where(self.image[place] == images, self.split[place], -1)

    def taught(self, images: torch.Tensor) -> torch.Tensor:
        """Of numbers [m] whether the head came to be what it is by them, bool [m]."""
        splits = self.splits_of(images)
        return (splits >= 0) & (splits != _HELD_OUT)

    def measures(self, images: torch.Tensor) -> torch.Tensor:
        """Of numbers [m] whether the head is measured by them, bool [m]."""
        return self.splits_of(images) > _TRAIN

    def joined(self, other: ShownImages) -> ShownImages:
        """Both; what one of them has learnt from is learnt from."""
        image = torch.cat([self.image, other.image])
        split = torch.cat([self.split, other.split])
        return self.of({name: image[split == number] for number, name in enumerate(SPLITS)})

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """As a file of tensors holds them."""
        return {"image": self.image, "split": self.split.to(torch.uint8)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> ShownImages:
        """What `to_tensors` gave."""
        return cls(tensors["image"], tensors["split"].long())

    def to_bytes(self) -> bytes:
        """The content of `shown.safetensors`; the same images give the same bytes."""
        return save(self.to_tensors())


def shown_images(bundle: Path) -> ShownImages:
    """What a bundle's head was shown.

    Args:
        bundle: Its directory.

    Raises:
        BundleError: The bundle cannot be used.
        ValueError: It does not say, or not as it did when it was exported.
    """
    stated = load_bundle(bundle).manifest.provenance.shown_sha256
    try:
        data = (bundle / SHOWN_FILE).read_bytes()
        if hashlib.sha256(data).hexdigest() == stated:
            return ShownImages.from_tensors(load(data))
    except (OSError, SafetensorError, KeyError):
        pass
    which = "it names" if stated else "says what its head was shown"
    raise ValueError(
        f"{bundle} has no {SHOWN_FILE} that {which}, so nothing can be measured on what it has "
        "not learnt from; export it again"
    )
