"""What a run of stage 2 or 3 leaves: its head, and the bundle that a router serves.

Knows files and measures on cached features; trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor_service.model.experts import ExpertSet
from router_service.bundle import load_bundle
from router_service.core import ExpertEntry
from training.export import export_bundle, write_manifest
from training.features import FeatureTable, load_features
from training.head_file import SavedHead, save_head
from training.joint import AnchoredRouter
from training.known_screens import KnownScreens, known_cache
from training.run_config import RunConfig, digest_of
from training.setting import Setting
from training.stage1 import Stage1Config, judged, split_by_image

BUNDLE_FOLDER = "router"
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
    """

    head: SavedHead
    bundle: Path | None
    experts: Mapping[str, Path]
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class BundleFeatures:
    """What a bundle is made with.

    Attributes:
        table: Its head is calibrated and measured on it.
        known: What its router is to know; None: the screens of the table's train split.
    """

    table: FeatureTable
    known: KnownScreens | None


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
    split_by_image(table, _splits(config))
    known = known_cache(config.known, table.index) if config.known else None
    return BundleFeatures(table, known)


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
            table, splits = features.table, split_by_image(features.table, _splits(config))
            result = judged(
                head, _for_experts(table, experts), splits, _splits(config), features.known
            )
            bundle, accuracy = export_bundle(result, config.out / BUNDLE_FOLDER), result.accuracy
            _state_run(bundle, config, stage)
    setting.accelerator.wait_for_everyone()
    return Outcome(saved, bundle, written, accuracy)


def _splits(config: RunConfig) -> Stage1Config:
    router = config.router
    assert router.width
    assert router.dropout is not None
    return Stage1Config(seed=config.seed, width=router.width, dropout=router.dropout)


def _for_experts(table: FeatureTable, experts: ExpertSet) -> FeatureTable:
    """The same features, for experts that have changed since: all gates were zero in them."""
    labels = {entry.name: entry.label for entry in table.index.experts}
    entries = tuple(
        ExpertEntry(identity.name, identity.digest, labels[identity.name])
        for identity in experts.identities
    )
    index = dataclasses.replace(table.index, experts=entries, expert_set=experts.digest)
    return dataclasses.replace(table, index=index)


def _state_run(bundle: Path, config: RunConfig, stage: int) -> None:
    """Puts the run in the place of stage 1 in what the bundle says of its origin."""
    manifest = load_bundle(bundle).manifest
    stated: dict[str, float | int | str] = {
        "stage": stage,
        "seed": config.seed,
        "records": digest_of(config.records),
        "dropout": config.router.dropout or 0.0,
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
