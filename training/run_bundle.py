"""The bundle of a run of stage 2 or 3: what it is measured on, and what it says of the run.

Knows caches of features, heads and bundles; trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from router_service.bundle import MANIFEST_FILE, load_bundle
from router_service.manifest import Provenance
from training.data.origin import image_numbers
from training.data.records import read_labelled
from training.export import export_bundle, write_manifest
from training.features import FeatureTable, load_features
from training.head_file import SavedHead, head_path, load_head
from training.known_screens import KnownLooks, known_looks
from training.run_config import RunConfig
from training.run_file import RUN_FILE, digest_of
from training.stage1 import Stage1Result, judged, split_by_image
from training.stage1_config import Stage1Config

BUNDLE_FOLDER, EXPERTS_FOLDER = "router", "experts"
# Of the images of a cache, as stage 1 has them.
_SHARES = ("validation_share", "held_out_share")
# What a bundle states of a run; paths stay on the machine that they belong to.
_STATED = ("steps", "batch_rows", "dtype", "mixed_precision", "router", "gates", "weights", "rates")


@dataclass(frozen=True)
class BundleFeatures:
    """What a bundle is made with.

    Attributes:
        table: Its head is calibrated and measured on it.
        known: What its router is to know; None: the screens of the table's train split.
        splits: How the table's rows are split.
    """

    table: FeatureTable
    known: KnownLooks | None
    splits: Stage1Config

    def measured(self) -> set[int]:
        """Numbers of the images that the head is calibrated and measured on."""
        splits = split_by_image(self.table, self.splits)
        rows = torch.cat([splits["validation"], splits["held_out"]])
        return set(self.table.image[rows].tolist())


def bundle_features(
    config: RunConfig, names: tuple[str, ...], spec_digest: str
) -> BundleFeatures | None:
    """The caches that a run names; None if it names none.

    Args:
        config: The run's.
        names: Of its experts, in order.
        spec_digest: Of what its head reads.

    Raises:
        ValueError: A cache is of other experts or another spec.
    """
    if config.features is None:
        return None
    table = load_features(config.features)
    if table.index.names != names:
        raise ValueError(
            f"the features are of {', '.join(table.index.names)}, the run mixes "
            f"{', '.join(names)}; name the same adapters"
        )
    if table.index.feature_spec.digest != spec_digest:
        raise ValueError("the features are not what the router reads; extract them again")
    splits = _splits(config, table)
    split_by_image(table, splits)
    known = known_looks(config.known, table.index) if config.known else None
    return BundleFeatures(table, known, splits)


def write_bundle(
    saved: SavedHead, features: BundleFeatures, config: RunConfig, out: Path, *, stage: int
) -> Stage1Result:
    """Calibrates and measures a head, and writes its bundle, which says which run it is of.

    Args:
        saved: The head.
        features: Of the experts that the bundle is for.
        config: The run's.
        out: The bundle's directory.
        stage: 2 or 3.
    """
    rows = split_by_image(features.table, features.splits)
    result = judged(saved.head, features.table, rows, features.splits, features.known)
    export_bundle(result, out)
    _state_run(out, config, features.splits, stage)
    return result


def export_run(run: Path, out: Path, features: Path, known: Path | None = None) -> Stage1Result:
    """Writes the bundle of a finished run that had no features, or other ones.

    Args:
        run: Its folder.
        out: The bundle's directory.
        features: Cache of the experts that the bundle is for: after stage 3, of those it wrote.
        known: Cache of the looks that the router is to know; None: those of `features`.

    Raises:
        ValueError: The folder holds no finished run, a cache does not belong to it, or it has
            learnt from screens that the bundle would be measured on.
    """
    if head_path(run).name == MANIFEST_FILE:
        raise ValueError(f"{run} is a bundle already: give the folder of a run of stage 2 or 3")
    saved = load_head(run)
    config = RunConfig.read(["--config", str(run / RUN_FILE)], "molora export")
    config = config.model_copy(update={"out": run})
    config.save()
    config = config.model_copy(update={"features": features, "known": known})
    found = bundle_features(config, saved.shape.experts, saved.shape.feature_spec.digest)
    assert found is not None
    if both := _images(config) & found.measured():
        raise ValueError(
            f"the run has learnt from {len(both)} of the screens that its bundle would be measured "
            "on; give features of others"
        )
    stage = 3 if (run / EXPERTS_FOLDER).is_dir() else 2
    return write_bundle(saved, found, config, out, stage=stage)


def _images(config: RunConfig) -> set[int]:
    """Numbers of the images of a run's records."""
    return set(image_numbers(read_labelled(config.records), config.images))


def _splits(config: RunConfig, table: FeatureTable) -> Stage1Config:
    """How a cache is split: if the head that is started from has learnt from it, as it was then.

    Otherwise the head would be measured on what it was taught.
    """
    router = config.router
    assert router.width
    assert router.dropout is not None
    own = Stage1Config(seed=config.seed, width=router.width, dropout=router.dropout)
    begun = _origin(config.start) if config.start else None
    if begun is None or begun.dataset_digest != table.index.dataset_digest:
        return own
    shares = {name: begun.config[name] for name in _SHARES if name in begun.config}
    return own.model_copy(update={"seed": begun.seed, **shares})


def _origin(start: Path) -> Provenance | None:
    """That of the bundle that a head was started from, or of the bundle that its run left."""
    for folder in (start, start / BUNDLE_FOLDER):
        if (folder / MANIFEST_FILE).exists():
            return load_bundle(folder).manifest.provenance
    return None


def _state_run(bundle: Path, config: RunConfig, splits: Stage1Config, stage: int) -> None:
    """Puts the run in the place of stage 1 in what the bundle says of its origin."""
    manifest = load_bundle(bundle).manifest
    stated: dict[str, float | int | str] = {
        "stage": stage,
        "seed": config.seed,
        "records": digest_of(config.records),
        "dropout": config.router.dropout or 0.0,
        **{name: getattr(splits, name) for name in _SHARES},
        **dict(_flat(config.model_dump(mode="json", include=set(_STATED)))),
    }
    provenance = dataclasses.replace(manifest.provenance, config=stated)
    write_manifest(dataclasses.replace(manifest, provenance=provenance), bundle)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int | str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float | int | str) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
