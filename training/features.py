"""Router features of a data set, as they are kept on disk.

Knows the cache's files; knows neither who extracts features nor heads. A cache directory holds
`features.json` and `shard-NNNNN.safetensors` with, for n rows:

    text [n, text_dim] float32, vision [n, vision_dim] float32,
    label [n] int64 (index into the cache's experts; -1 where nobody knows the screen,
    or only an agent said whose it is),
    image [n] int64 (first eight bytes of the file's sha256, of a changed screen those of the file
        that it was made of: what splits must not cut),
    source [n] int64 (index into the cache's sources)
    hinted [n] int64 (index of the expert that an agent named, -1 where none did)
    confidence [n] float32 (the agent's own, NaN where it gave none)

"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load

from training.feature_index import FeatureIndex, read_index


@dataclass(frozen=True)
class FeatureTable:
    """A cache in memory; the columns are those of the shards."""

    index: FeatureIndex
    text: torch.Tensor
    vision: torch.Tensor
    label: torch.Tensor
    image: torch.Tensor
    source: torch.Tensor
    hinted: torch.Tensor
    confidence: torch.Tensor

    def __len__(self) -> int:
        return len(self.label)


COLUMNS = tuple(field.name for field in dataclasses.fields(FeatureTable) if field.name != "index")
"""What a shard holds."""


def load_features(directory: Path) -> FeatureTable:
    """Read a cache.

    Args:
        directory: What `cache_features` wrote.

    Raises:
        ValueError: The index or a shard is missing or is not what was written.
    """
    index = read_index(directory)
    columns: dict[str, torch.Tensor] = {}
    filled = 0
    try:
        for name, digest in index.shards.items():
            data = (directory / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"{directory / name} changed since it was written; extract again")
            shard = _with_hints(load(data))
            rows = len(shard["label"])
            # The first shard has as many rows as any, and what stays empty takes no memory.
            columns = columns or _empty_columns(shard, rows * len(index.shards))
            for column, values in columns.items():
                values[filled : filled + rows] = shard[column]
            filled += rows
    except OSError as error:
        raise ValueError(f"{directory} holds no whole feature cache; extract again") from error
    return FeatureTable(index, *(values[:filled] for values in columns.values()))


def _empty_columns(shard: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """Room for so many rows of what a shard holds, in the order of a table."""
    return {name: shard[name].new_empty((rows, *shard[name].shape[1:])) for name in COLUMNS}


def _with_hints(shard: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A shard from before agents were asked has no hints."""
    rows = len(shard["label"])
    return {
        "hinted": torch.full((rows,), -1),
        "confidence": torch.full((rows,), math.nan),
        **shard,
    }
