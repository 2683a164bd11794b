"""`make miniature`: base, experts and router, from nothing to `miniature/`.

Knows the order of the steps and that a stopped run goes on where it left off; each step is a
module of its own.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from training.data.synthesize import synthesize
from training.miniature.appearing import appearing_whole
from training.miniature.base import Steps, pretrain
from training.miniature.begun import check_begun
from training.miniature.clock import Clock
from training.miniature.experts import LEFT_OUT, RECIPES, train_expert
from training.miniature.router import (
    IMAGES_PER_KIND,
    JUDGED_IMAGES,
    KNOWN_IMAGES_PER_KIND,
    train_router,
)
from training.miniature.side_by_side import core_groups, side_by_side

ROOT = Path(__file__).resolve().parents[2]
SAMPLES_SEED = 20_261
# An expert learns in one process, and another draws for it.
CORES_EACH = 2
console = Console()


def main() -> None:
    """Runs every step that is not done yet, then publishes."""
    arguments = _arguments()
    work: Path = arguments.work
    steps = Steps()
    try:
        check_begun(work, _recipe(steps, arguments.seed))
    except ValueError as error:
        sys.exit(f"miniature: {error}")
    clock = Clock(work / "seconds.json")
    base = pretrain(work, steps=steps, seed=arguments.seed, clock=clock)
    _train_experts(base, work, arguments.seed, clock)
    with clock.step("router"):
        train_router(base, work / "experts", work, seed=arguments.seed)
    publish(work, arguments.out)
    table = Table("step", "minutes")
    for title, seconds in clock.seconds().items():
        table.add_row(title, f"{seconds / 60:.1f}")
    console.print(table)
    console.print(f"The miniature is in {arguments.out}; try it with: make demo")


def _recipe(steps: Steps, seed: int) -> dict[str, Any]:
    """What would make another miniature."""
    experts = {name: recipe.steps for name, recipe in RECIPES.items()}
    screens = {"learnt": IMAGES_PER_KIND, "known": KNOWN_IMAGES_PER_KIND, "judged": JUDGED_IMAGES}
    return {"seed": seed, "steps": asdict(steps), "expert steps": experts, "screens": screens}


def _train_experts(base: Path, work: Path, seed: int, clock: Clock) -> None:
    """One after the other, or side by side where each has cores of its own."""
    # The longest first: who begins last should not be who ends last.
    names = sorted(RECIPES, key=lambda name: -RECIPES[name].steps)
    groups = core_groups(CORES_EACH)[: len(names)]
    train = partial(train_expert, base=base, work=work, seed=seed)
    if len(groups) > 1:
        with clock.step("experts, side by side"):
            side_by_side(train, names, groups)
        return
    for name in names:
        with clock.step(f"expert {name}"):
            train(name)


def publish(work: Path, out: Path) -> None:
    """Copies the trained parts to `out` and draws the sample set beside them."""
    for part in ("base", "experts", "router"):
        with appearing_whole(out / part) as partial:
            shutil.copytree(work / part, partial, dirs_exist_ok=True)
    with appearing_whole(out / "samples") as partial:
        synthesize(
            partial,
            images_per_kind=6,
            tasks_per_image=5,
            seed=SAMPLES_SEED,
            shares={"train": 0.4, "held_out": 0.6},
            experts=tuple(RECIPES),
            left_out=LEFT_OUT,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.miniature", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "miniature")
    parser.add_argument("--out", type=Path, default=ROOT / "miniature")
    parser.add_argument("--seed", type=int, default=0, help="with the number of cores, of all")
    return parser.parse_args()


if __name__ == "__main__":
    # Without this a SIGTERM would leave experts that learn and servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
