"""The heads of a study: stage 1, stage 2 from it, stage 3, and short runs with one thing changed.

Knows run configurations and where results lie; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from training.export import export_bundle
from training.marginals import GatesCollapsed
from training.run_bundle import BUNDLE_FOLDER, EXPERTS_FOLDER
from training.run_config import RunConfig
from training.stage1 import train_stage1
from training.stage1_config import Stage1Config
from training.stage2 import train_stage2
from training.stage3 import train_stage3
from training.study.kept import Kept
from training.study.screens import Sets

Progress = Callable[[int, int], None]

PLAIN = "plain"
"""The ablation that changes nothing: stage 2 itself."""
FROM_NOTHING = "from nothing"
_HARD = {"estimator": "straight_through", "temperature_start": 2.0, "temperature_end": 0.5}
ABLATIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        PLAIN: {},
        "with KL": {"weights": {"kl": 0.1}},
        "without entropy": {"weights": {"entropy": 0.0}},
        "without balance": {"weights": {"balance": 0.0}},
        "top-1 straight-through": {"gates": {**_HARD, "top_k": 1}},
        "top-2 straight-through": {"gates": {**_HARD, "top_k": 2}},
        "top-1 gumbel": {"gates": {**_HARD, "estimator": "gumbel", "top_k": 1}},
        "per layer": {"router": {"per_layer": True}},
        FROM_NOTHING: {},
        f"{FROM_NOTHING}, without balance": {"weights": {"balance": 0.0}},
    }
)
"""Name to what a short run of stage 2 has in the place of the defaults."""


@dataclass(frozen=True)
class Learner:
    """Trains what a study compares.

    Attributes:
        model: The base.
        experts: Folder with one expert per folder.
        sets: Screens.
        cache: Of the default features that stage 1 learns from.
        out: Gets a folder for each head.
        steps: Of stages 2 and 3.
        batch_rows: Records of a step.
    """

    model: Path
    experts: Path
    sets: Sets
    cache: Path
    out: Path
    steps: int
    batch_rows: int

    def stage1(self, seed: int, kept: Kept) -> Path:
        """The bundle of a head on the default features."""
        out = self.out / f"stage1-{seed}"

        def run() -> str:
            result = train_stage1(self.cache, config=Stage1Config(seed=seed), progress=False)
            return str(export_bundle(result, out))

        kept.step(f"stage 1 seed {seed}", run)
        return out

    def stage2(self, seed: int, start: Path, kept: Kept, progress: Progress) -> Path:
        """The bundle of that head after stage 2."""
        out = self.out / f"stage2-{seed}"
        config = self._config(out, seed, start, {})
        kept.step(f"stage 2 seed {seed}", lambda: _trained(train_stage2, config, progress))
        return out / BUNDLE_FOLDER

    def stage3(self, seed: int, start: Path, kept: Kept, progress: Progress) -> tuple[Path, Path]:
        """The bundle after stage 3, and the folder of the experts that learnt with it."""
        out = self.out / f"stage3-{seed}"
        config = self._config(out, seed, start, {})
        kept.step(f"stage 3 seed {seed}", lambda: _trained(train_stage3, config, progress))
        return out / BUNDLE_FOLDER, out / EXPERTS_FOLDER

    def ablation(
        self, name: str, seed: int, start: Path, kept: Kept, progress: Progress
    ) -> tuple[Path, str | None]:
        """The folder of a run of stage 2 with one thing changed, and why it was stopped."""
        if name == PLAIN:
            return self.out / f"stage2-{seed}", None
        out = self.out / "ablations" / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
        begun = None if name.startswith(FROM_NOTHING) else start
        config = self._config(out, seed, begun, ABLATIONS[name])
        found = kept.step(
            f"ablation {name} seed {seed}", lambda: _trained(train_stage2, config, progress)
        )
        return out, found.get("collapsed")

    def _config(
        self, out: Path, seed: int, start: Path | None, changes: Mapping[str, Any]
    ) -> RunConfig:
        values: dict[str, Any] = {
            "model": self.model,
            "records": self.sets.lessons,
            "out": out,
            "experts_root": self.experts,
            "start": start,
            "features": self.cache,
            "steps": self.steps,
            "batch_rows": self.batch_rows,
            "save_every": 20,
            "seed": seed,
        }
        return RunConfig(**values | dict(changes))


def _trained(train: Callable[..., Any], config: RunConfig, progress: Progress) -> dict[str, str]:
    """Why a run was stopped, if it was; its files are what matters."""
    try:
        train(config, progress=progress)
    except GatesCollapsed as error:
        return {"collapsed": str(error)}
    return {}
