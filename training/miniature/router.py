"""Trains the miniature's router: stage 1 on features from a real executor process.

Knows the order of the steps; features, head and export are modules of their own.
"""

from __future__ import annotations

from pathlib import Path

from training.data.synthesize import synthesize
from training.demo.server import ServerProcess
from training.export import export_bundle
from training.features import cache_features
from training.stage1 import Stage1Config, train_stage1

IMAGES_PER_KIND = 200
TASKS_PER_IMAGE = 4
START_S = 120.0
# Screens of its own: neither the base, the experts nor the sample set has drawn them.
SEED_OFFSET = 7_000_003


def train_router(base: Path, experts: Path, work: Path, *, seed: int) -> Path:
    """Draws labelled records, extracts their features over gRPC, trains and exports the head.

    Args:
        base: The pretrained checkpoint.
        experts: Folder with one expert per folder.
        work: Folder of the run.
        seed: Of records and head.

    Returns:
        The router bundle's directory.
    """
    records, features, out = work / "routing", work / "features", work / "router"
    if (out / "router.json").exists():
        return out
    if not records.exists():
        synthesize(
            records,
            images_per_kind=IMAGES_PER_KIND,
            tasks_per_image=TASKS_PER_IMAGE,
            seed=seed + SEED_OFFSET,
            shares={"all": 1.0},
        )
    flags = ["--model", str(base), "--experts-root", str(experts)]
    with ServerProcess(
        "executor_service", [*flags, "--port", "0", "--metrics-port", "0"]
    ) as executor:
        executor.wait_serving(START_S)
        address = executor.wait_listening(START_S)
        cache_features(records / "all.jsonl", records, address, features)
    return export_bundle(train_stage1(features, config=Stage1Config(seed=seed)), out)
