"""What a run of stage 2 or 3 leaves: its head, and the bundle that a router serves.

Knows files and measures on cached features; trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from executor_service.model.experts import ExpertSet
from router_service.bundle import MANIFEST_FILE, load_bundle
from router_service.core import ExpertEntry
from router_service.manifest import Provenance
from training.export import export_bundle, write_manifest
from training.features import FeatureTable, load_features
from training.head_file import SavedHead, save_head
from training.joint import AnchoredRouter
from training.known_screens import KnownLooks, known_looks
from training.run_config import RunConfig
from training.run_file import digest_of
from training.setting import Setting
from training.stage1 import judged, split_by_image
from training.stage1_config import Stage1Config

BUNDLE_FOLDER = "router"
# Of the images of a cache, as stage 1 has them.
_SHARES = ("validation_share", "held_out_share")
# What a bundle states of a run; paths stay on the machine that they belong to.
_STATED = ("steps", "batch_rows", "dtype", "mixed_precision", "router", "gates", "weights", "rates")


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        head: The trained head, in evaluation mode.
        bundle: Directory of the router bundle; None where no features were named.
        experts: Directories of the experts that were written, by name; empty in stage 2.
        accuracy: Of the head, split name to share; empty without features.
        left_out: Records that the run did not learn from, see `kept_apart`.
    """

    head: SavedHead
    bundle: Path | None
    experts: Mapping[str, Path]
    accuracy: Mapping[str, float]
    left_out: int


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


def features_for_bundle(setting: Setting) -> BundleFeatures | None:
    """The caches that the run names; looked at before a run, which would end in vain.

    Raises:
        ValueError: One is of other experts or another spec.
    """
    config = setting.config
    if config.features is None:
        return None
    table = load_features(config.features)
    if table.index.names != setting.experts.names:
        raise ValueError(
            f"the features are of {', '.join(table.index.names)}, the run mixes "
            f"{', '.join(setting.experts.names)}; name the same adapters"
        )
    if table.index.feature_spec.digest != setting.spec.digest:
        raise ValueError("the features are not what the router reads; extract them again")
    splits = _splits(config, table)
    split_by_image(table, splits)
    known = known_looks(config.known, table.index) if config.known else None
    return BundleFeatures(table, known, splits)


def kept_apart(setting: Setting, features: BundleFeatures | None) -> Setting:
    """The run without the records of screens that its bundle is calibrated and measured on.

    Args:
        setting: The run's.
        features: What `features_for_bundle` gave.

    Raises:
        ValueError: No record is left.
    """
    if features is None:
        return setting
    rows = setting.rows.without(features.measured())
    if not len(rows):
        raise ValueError(
            "the bundle is measured on the screens of all records; give features of others"
        )
    return dataclasses.replace(setting, rows=rows, left_out=len(setting.rows) - len(rows))


def finish(
    setting: Setting,
    router: AnchoredRouter,
    features: BundleFeatures | None,
    *,
    stage: int,
    experts: ExpertSet,
    written: Mapping[str, Path],
) -> Outcome:
    """Writes the head and, where there are features, its bundle; in the main process only.

    Args:
        setting: The run's.
        router: Holds the trained head.
        features: What `features_for_bundle` gave.
        stage: 2 or 3.
        experts: The set that the bundle is for.
        written: Directories of the experts that the run wrote.
    """
    config = setting.config
    head = router.head.eval().cpu()
    saved = SavedHead(head, setting.head.shape, config.gates.temperature_end)
    bundle: Path | None = None
    accuracy: Mapping[str, float] = {}
    if setting.accelerator.is_main_process:
        save_head(saved, config.out)
        if features is not None:
            splits, table = features.splits, _for_experts(features.table, experts)
            result = judged(head, table, split_by_image(table, splits), splits, features.known)
            bundle, accuracy = export_bundle(result, config.out / BUNDLE_FOLDER), result.accuracy
            _state_run(bundle, config, splits, stage)
    setting.accelerator.wait_for_everyone()
    return Outcome(saved, bundle, written, accuracy, setting.left_out)


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


def _for_experts(table: FeatureTable, experts: ExpertSet) -> FeatureTable:
    """The same features, for experts that have changed since: all gates were zero in them."""
    labels = {entry.name: entry.label for entry in table.index.experts}
    entries = tuple(
        ExpertEntry(identity.name, identity.digest, labels[identity.name])
        for identity in experts.identities
    )
    index = dataclasses.replace(table.index, experts=entries, expert_set=experts.digest)
    return dataclasses.replace(table, index=index)


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
