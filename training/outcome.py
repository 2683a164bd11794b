"""What a run of stage 2 or 3 leaves: its head, and the bundle that a router serves.

Knows the run's parts; `run_bundle.py` knows what a bundle is measured on. Trains nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executor_service.model.experts import ExpertSet
from training.head_file import SavedHead, save_head
from training.joint import AnchoredRouter
from training.run_bundle import BUNDLE_FOLDER, BundleFeatures, bundle_features, write_bundle
from training.setting import Setting
from training.shown import ShownImages


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        head: The trained head, in evaluation mode.
        bundle: Directory of the router bundle; None where no features were named.
        experts: Directories of the experts that were written, by name; empty in stage 2.
        accuracy: Of the head, split name to share; empty without features.
        cases: How many rows each split has.
        left_out: Records that the run did not learn from, see `kept_apart`.
    """

    head: SavedHead
    bundle: Path | None
    experts: Mapping[str, Path]
    accuracy: Mapping[str, float]
    cases: Mapping[str, int]
    left_out: int


def features_for_bundle(setting: Setting) -> BundleFeatures | None:
    """The caches that the run names; looked at before a run, which would end in vain.

    Raises:
        ValueError: One is of other experts or another spec.
    """
    return bundle_features(
        setting.config, setting.experts.names, setting.spec.digest, setting.head.shown
    )


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
    bundle: Path | None = None
    accuracy: Mapping[str, float] = {}
    cases: Mapping[str, int] = {}
    shown = setting.head.shown.joined(ShownImages.of({"train": setting.rows.image_numbers}))
    if features is not None:
        shown = shown.joined(features.shown())
    saved = SavedHead(head, setting.head.shape, shown, config.gates.temperature_end)
    if setting.accelerator.is_main_process:
        save_head(saved, config.out)
        if features is not None:
            bundle = config.out / BUNDLE_FOLDER
            measured = write_bundle(
                saved, features, config, bundle, stage=stage, experts=experts.identities
            )
            accuracy, cases = measured.accuracy, measured.cases
    setting.accelerator.wait_for_everyone()
    return Outcome(saved, bundle, written, accuracy, cases, setting.left_out)
