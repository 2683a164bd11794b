"""The bundle of a run of stage 2 or 3: what it is measured on, and what it says of the run.

Knows caches of features, heads and bundles; trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from executor_service.core import ExpertIdentity, expert_set_digest
from executor_service.model.adapters import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from executor_service.model.experts import ExpertLocation
from router_service.bundle import MANIFEST_FILE
from router_service.core import ExpertEntry
from training.export import export_bundle
from training.features import FeatureTable, load_features
from training.head_file import SavedHead, head_path, load_head
from training.known_screens import KnownLooks, known_looks
from training.run_config import RunConfig
from training.run_file import RUN_FILE
from training.shown import ShownImages
from training.splitting import split_by_image
from training.stage1 import Stage1Result, judged
from training.stage1_config import Stage1Config

BUNDLE_FOLDER, EXPERTS_FOLDER = "router", "experts"
# What a bundle states of a run; paths stay on the machine that they belong to.
_STATED = ("steps", "batch_rows", "dtype", "mixed_precision", "router", "gates", "weights", "rates")


@dataclass(frozen=True)
class BundleFeatures:
    """What a bundle is made with.

    Attributes:
        table: Its head is calibrated and measured on it.
        known: What its router is to know; None: the screens of the table's train split.
        config: What stage 1 would be told of the head.
        splits: Row indices of each split.
    """

    table: FeatureTable
    known: KnownLooks | None
    config: Stage1Config
    splits: Mapping[str, torch.Tensor]

    def shown(self) -> ShownImages:
        """The images of the splits."""
        return ShownImages.of({name: self.table.image[rows] for name, rows in self.splits.items()})

    def measured(self) -> set[int]:
        """Numbers of the images that the head is calibrated and measured on."""
        rows = torch.cat([self.splits["validation"], self.splits["held_out"]])
        return set(self.table.image[rows].tolist())


def bundle_features(
    config: RunConfig, names: tuple[str, ...], spec_digest: str, shown: ShownImages
) -> BundleFeatures | None:
    """The caches that a run names; None if it names none.

    Args:
        config: The run's.
        names: Of its experts, in order.
        spec_digest: Of what its head reads.
        shown: What its head has been shown, which stays in its splits.

    Raises:
        ValueError: A cache is of other experts or another spec, or has no images to measure on.
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
    router = config.router
    assert router.width
    assert router.dropout is not None
    stage1 = Stage1Config(seed=config.seed, width=router.width, dropout=router.dropout)
    splits = split_by_image(table, stage1, shown)
    found = BundleFeatures(table, None, stage1, splits)
    if config.known is None:
        return found
    known = known_looks(config.known, table.index, found.shown().joined(shown))
    return dataclasses.replace(found, known=known)


def write_bundle(
    saved: SavedHead,
    features: BundleFeatures,
    config: RunConfig,
    out: Path,
    *,
    stage: int,
    experts: Sequence[ExpertIdentity],
) -> Stage1Result:
    """Calibrates and measures a head, and writes its bundle, which says which run it is of.

    Args:
        saved: The head.
        features: Of experts of the same names.
        config: The run's.
        out: The bundle's directory.
        stage: 2 or 3.
        experts: That the bundle is for.

    Raises:
        ValueError: The run's folder does not say what it was given; nothing is written.
    """
    origin = _origin(config, stage)
    table = _for_experts(features.table, experts)
    result = judged(saved.head, table, features.splits, features.config, features.known)
    result = dataclasses.replace(result, shown=result.shown.joined(saved.shown))
    export_bundle(result, out, origin)
    return result


def export_run(run: Path, out: Path, features: Path, known: Path | None = None) -> Stage1Result:
    """Writes the bundle of a finished run that had no features, or other ones.

    Args:
        run: Its folder.
        out: The bundle's directory.
        features: Cache of experts of the same names. The bundle is for those that the run mixed,
            after stage 3 for those that it wrote.
        known: Cache of the looks that the router is to know; None: those of `features`.

    Raises:
        ValueError: The folder holds no finished run, a cache does not belong to it, it has learnt
            from all screens that the bundle could be measured on, or its experts have changed.
    """
    if head_path(run).name == MANIFEST_FILE:
        raise ValueError(f"{run} is a bundle already: give the folder of a run of stage 2 or 3")
    saved = load_head(run)
    config = RunConfig.read(["--config", str(run / RUN_FILE)], "molora export")
    config = config.model_copy(update={"out": run})
    config.save()
    config = config.model_copy(update={"features": features, "known": known})
    found = bundle_features(
        config, saved.shape.experts, saved.shape.feature_spec.digest, saved.shown
    )
    assert found is not None
    written = run / EXPERTS_FOLDER
    stage = 3 if written.is_dir() else 2
    experts = [
        _identity(name, written / name if stage == 3 else config.lora_modules[name])
        for name in saved.shape.experts
    ]
    if stage == 2 and expert_set_digest(experts) != config.pinned()["experts"]:
        raise ValueError(
            "the experts have changed since the run mixed them, and its head is for those; put "
            "them back, or train it with these"
        )
    return write_bundle(saved, found, config, out, stage=stage, experts=experts)


def _identity(name: str, directory: Path) -> ExpertIdentity:
    """An expert by what its files hold.

    Raises:
        ValueError: They cannot be read.
    """
    adapter = ExpertLocation(name, directory).adapter
    try:
        files = [(adapter / file).read_bytes() for file in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError as error:
        raise ValueError(
            f"{name} is not in {directory} any more ({error.strerror}); put it back there"
        ) from None
    return ExpertIdentity(name, adapter_digest(*files), 1)


def _for_experts(table: FeatureTable, experts: Sequence[ExpertIdentity]) -> FeatureTable:
    """The same features, for experts that have changed since: all gates were zero in them."""
    labels = {entry.name: entry.label for entry in table.index.experts}
    entries = tuple(
        ExpertEntry(expert.name, expert.digest, labels[expert.name]) for expert in experts
    )
    digest = expert_set_digest(experts)
    return dataclasses.replace(
        table, index=dataclasses.replace(table.index, experts=entries, expert_set=digest)
    )


def _origin(config: RunConfig, stage: int) -> dict[str, float | int | str]:
    """What the bundle says of the run; of the records, what they were when it began.

    Raises:
        ValueError: The run's folder does not say.
    """
    return {
        "stage": stage,
        "seed": config.seed,
        "records": config.pinned()["records"],
        "dropout": config.router.dropout or 0.0,
        **dict(_flat(config.model_dump(mode="json", include=set(_STATED)))),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int | str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, float | int | str) and not isinstance(value, bool):
            yield f"{prefix}{name}", value
