"""Feature caches on disk whose answer is known, without an executor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from router_service.bundle import MANIFEST_FILE
from router_service.core import ExpertEntry, FeatureSpec
from tests.support import router_bundle
from training.feature_index import FeatureIndex
from training.shown import SHOWN_FILE, ShownImages


def write_shard(
    directory: Path,
    columns: dict[str, torch.Tensor],
    spec: FeatureSpec,
    experts: Sequence[ExpertEntry],
    dataset_digest: str,
) -> Path:
    """A cache of one shard.

    Args:
        directory: Made if it is missing.
        columns: See `training.features`.
        spec: What the features are.
        experts: The labels.
        dataset_digest: Of the records that there might have been.

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = "shard-00000.safetensors"
    save_file(columns, directory / name)
    digest = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    index = FeatureIndex(
        spec, "e" * 64, tuple(experts), dataset_digest, ("synthetic",), 0, {name: digest}
    )
    stated = dataclasses.asdict(index) | {"feature_spec_digest": spec.digest}
    (directory / "features.json").write_text(json.dumps(stated))
    return directory


def state_shown(bundle: Path, shown: ShownImages | None = None) -> Path:
    """Makes a bundle say which images its head was shown: by itself none.

    Returns:
        `bundle`.
    """
    data = (shown or ShownImages.of({})).to_bytes()
    (bundle / SHOWN_FILE).write_bytes(data)
    stated = json.loads((bundle / MANIFEST_FILE).read_text())
    stated["provenance"]["shown_sha256"] = hashlib.sha256(data).hexdigest()
    (bundle / MANIFEST_FILE).write_text(json.dumps(stated))
    return bundle


def write_calibrated(
    directory: Path,
    *,
    images: int = 300,
    rows: int = 1,
    seed: int = 0,
    experts: tuple[ExpertEntry, ...] = router_bundle.EXPERTS,
    digest: str = "f" * 64,
    hints: float | None = None,
    **changes: Any,
) -> Path:
    """Cases for the head of `router_bundle`, whose logits are calibrated on them.

    The label of a case is drawn from the softmax of its logits. Distances are even in [0, 1].

    Args:
        directory: Of the cache.
        images: Their number.
        rows: Cases an image.
        seed: Of everything drawn.
        experts: The bundle's, in any order.
        digest: Of the records.
        hints: How often an agent is right that says nothing of how sure it is; None: no agent.
        changes: Of the feature spec.
    """
    known = [expert.name for expert in router_bundle.EXPERTS]
    noise = torch.Generator().manual_seed(seed)
    n = images * rows
    logits = 4 * torch.randn(n, len(known), generator=noise)
    drawn = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=noise).flatten()
    names = [expert.name for expert in experts]
    own = [names.index(known[label]) if known[label] in names else 0 for label in range(3)]
    label = torch.tensor(own)[drawn]
    columns = {
        "text": torch.cat([logits, torch.zeros(n, 1)], dim=1),
        "vision": torch.rand(n, 3, generator=noise) * 1e-6,
        "label": label,
        "image": torch.arange(images).repeat_interleave(rows) * 7919,
        "source": torch.zeros(n, dtype=torch.int64),
    }
    columns["vision"][:, 0] = torch.rand(n, generator=noise)
    columns["text"][:, 0] -= columns["vision"][:, 0] / 10
    if hints is not None:
        right = torch.rand(n, generator=noise) < hints
        columns["hinted"] = torch.where(right, label, (label + 1) % len(experts))
        columns["confidence"] = torch.full((n,), math.nan)
    spec = dataclasses.replace(router_bundle.SPEC, **changes)
    return write_shard(directory, columns, spec, experts, digest)
