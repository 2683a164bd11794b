"""Trains the miniature's router and fits what it acts on: stage 1, then its judgement.

Knows the order of the steps; features, head, export and the fit are modules of their own.
"""

from __future__ import annotations

from pathlib import Path

from molora_client import Molora
from router_service.bundle import MANIFEST_FILE, load_bundle
from training.data.synthesize import ANY_LOOKS
from training.export import export_bundle
from training.extraction import CALL_TIMEOUT_S
from training.feature_index import INDEX_FILE
from training.judged_screens import UNKNOWN, draw, extract, judged_screens
from training.judgement import fit_bundle
from training.services import executor_started, learning_flags
from training.stage1 import train_stage1
from training.stage1_config import Stage1Config

IMAGES_PER_KIND = 3600
TASKS_PER_IMAGE = 1
# The head learns from made-up themes, and from so many screens at any size: neither may give a
# class away, and none of the experts' own looks is all that there is.
LOOKS = ANY_LOOKS
OTHER_SIZES = 0.8
# What is known are the looks that the experts were trained on. They cannot answer in others,
# however well the head tells whose a screen is, so it abstains from those.
KNOWN_IMAGES_PER_KIND = 60
KNOWN_SEED_OFFSET = 6_000_101
# Screens of its own: neither the base, the experts nor the sample set has drawn them.
SEED_OFFSET = 7_000_003
# And others to judge the head on, which it has not learnt from either.
JUDGED_SEED_OFFSET = 8_000_009
# As many as certify the risk: a veto of an agent that is wrong in a fifth of the cases takes 104
# disputes without a mistake, and three quarters of the images are there to prove it.
JUDGED_IMAGES = 840
MAX_RISK = 0.05
# A refused screen is an error by default, so it must be rare: the least that 840 images can show,
# which costs nothing, because the pictures that no expert knows are farther by far.
MAX_REFUSED = 0.002
# No record of the miniature carries an agent's hint; the bundle says that it was simulated.
AGENT_RELIABILITY = 0.8


def train_router(
    base: Path,
    experts: Path,
    work: Path,
    *,
    seed: int,
    images_per_kind: int = IMAGES_PER_KIND,
    judged_images: int = JUDGED_IMAGES,
) -> Path:
    """Trains and exports the head, and fits its thresholds, its agent and its abstention.

    Goes on where a stopped run left off.

    Args:
        base: The pretrained checkpoint.
        experts: Folder with one expert per folder, each named as `training.data.synthesize` does.
        work: Folder of the run.
        seed: Of records, head and simulated agent.
        images_per_kind: Screens of each expert that the head is trained on.
        judged_images: Screens of all experts that the judgement is fitted to.

    Returns:
        The router bundle's directory.
    """
    features, known, judged = work / "features", work / "known", work / "judged"
    out = work / "router"
    if _is_exported(out) and load_bundle(out).manifest.fit:
        return out
    caches = (features, known, judged, judged / UNKNOWN)
    if not all((cache / INDEX_FILE).exists() for cache in caches):
        _extract(base, experts, work, seed, images_per_kind, judged_images)
    if not _is_exported(out):
        export_bundle(train_stage1(features, config=Stage1Config(seed=seed), known=known), out)
    fit_bundle(
        out,
        judged,
        max_risk=MAX_RISK,
        max_refused=MAX_REFUSED,
        reliability=AGENT_RELIABILITY,
        seed=seed,
    )
    return out


def _is_exported(bundle: Path) -> bool:
    return (bundle / MANIFEST_FILE).exists()


def _extract(
    base: Path, experts: Path, work: Path, seed: int, images_per_kind: int, judged_images: int
) -> None:
    """All sets of screens and their features, through one executor process."""
    names = sorted(path.parent.name for path in experts.glob("*/expert.json"))
    draw(
        work / "routing",
        names,
        images_per_kind=images_per_kind,
        tasks=TASKS_PER_IMAGE,
        seed=seed + SEED_OFFSET,
        other_sizes=OTHER_SIZES,
        looks=LOOKS,
    )
    draw(
        work / "known" / "screens",
        names,
        images_per_kind=KNOWN_IMAGES_PER_KIND,
        tasks=1,
        seed=seed + KNOWN_SEED_OFFSET,
    )
    with (
        executor_started(*learning_flags(base, experts)) as address,
        Molora(executor=address, timeout_s=CALL_TIMEOUT_S) as client,
    ):
        extract(work / "routing", client, work / "features")
        extract(work / "known" / "screens", client, work / "known")
        judged_screens(
            work / "judged",
            client,
            names,
            images=judged_images,
            seed=seed + JUDGED_SEED_OFFSET,
        )
