"""What the router's head should read, its width and its mixing: one factor at a time, measured.

Knows an executor's feature flags and stage 1; knows no answer.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from molora_client import Molora
from training.extraction import CALL_TIMEOUT_S, cache_features
from training.feature_index import INDEX_FILE
from training.features import FeatureTable, load_features
from training.heads import LayeredHead, RouterHead
from training.services import executor_started
from training.stage1 import head_logits, train_stage1
from training.stage1_config import Stage1Config
from training.study.kept import Kept
from training.study.screens import Sets

WIDTHS = (32, 64, 128, 256)
MIXUPS = (0.0, 0.2, 0.4, 1.0)
# 0.98 and more leave the same head of 560 screens: of its few hundred steps each keeps
# (1 + steps) / (10 + steps) at most.
AVERAGINGS = (0.0, 0.9, 0.995)
DEFAULT_CONFIG = Stage1Config()
LEARNT, _UNSEEN = "learnt", "unseen"


@dataclass(frozen=True)
class Spec:
    """What features are read; the defaults are the executor's."""

    layer: int = 2
    pooling: str = "mean"
    source: str = "levels"
    vision_pooling: str = "statistics"

    @property
    def name(self) -> str:
        """For a folder."""
        return f"layer-{self.layer}-{self.pooling}-{self.source}-{self.vision_pooling}"

    @property
    def flags(self) -> list[str]:
        """Of an executor that extracts them."""
        return [
            *("--feature-layer", str(self.layer)),
            *("--text-pooling", self.pooling),
            *("--vision-source", self.source),
            *("--vision-pooling", self.vision_pooling),
        ]


@dataclass(frozen=True)
class Choice:
    """One value of one factor, all others at their defaults."""

    factor: str
    value: str
    spec: Spec = Spec()
    config: Stage1Config = DEFAULT_CONFIG

    @property
    def default(self) -> bool:
        """Whether it is the value in force."""
        return self.spec == Spec() and self.config == DEFAULT_CONFIG


def choices(layers: int) -> list[Choice]:
    """All that are compared.

    Args:
        layers: Decoder layers of the model; behind the last one there is nothing left to save.
    """
    return [
        *(Choice("text layer", str(at), Spec(layer=at)) for at in range(1, layers)),
        *(Choice("text pooling", each, Spec(pooling=each)) for each in ("mean", "last", "first")),
        *(
            Choice("vision source", each, Spec(source=each))
            for each in ("tower", "deepstack", "levels", "fused")
        ),
        *(
            Choice("vision pooling", each, Spec(vision_pooling=each))
            for each in ("mean", "statistics")
        ),
        *(Choice("width", str(width), config=Stage1Config(width=width)) for width in WIDTHS),
        *(Choice("mixup", str(mixup), config=Stage1Config(mixup=mixup)) for mixup in MIXUPS),
        *(Choice("averaging", str(a), config=Stage1Config(averaging=a)) for a in AVERAGINGS),
    ]


def extract(
    spec: Spec, sets: Sets, executor_flags: Sequence[str], folder: Path, kept: Kept
) -> dict[str, float]:
    """Caches a spec's features of the learnt and of the unseen screens, with a real executor.

    Returns:
        Seconds in all, and of one record.
    """

    def run() -> dict[str, float]:
        seconds, records = 0.0, 0
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(executor_started(*executor_flags, *spec.flags))
            client = stack.enter_context(Molora(executor=address, timeout_s=CALL_TIMEOUT_S))
            for name, file in ((LEARNT, sets.learnt), (_UNSEEN, sets.unseen)):
                out = folder / spec.name / name
                start = time.monotonic()
                if not (out / INDEX_FILE).exists():
                    cache_features(file, file.parent, client, out, progress=False)
                seconds += time.monotonic() - start
                records += len(load_features(out))
        return {"seconds": seconds, "records": records, "seconds_a_record": seconds / records}

    found: dict[str, float] = kept.step(f"features {spec.name}", run)
    return found


def compare(
    compared: Sequence[Choice],
    seeds: Sequence[int],
    folder: Path,
    kept: Kept,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Trains a head for every choice and seed on features that are cached.

    Args:
        compared: Their specs were extracted.
        seeds: Of splits, weights and batches.
        folder: That of `extract`.
        kept: Gets a step for each spec and head.
        advance: Called with how many choices are done.

    Returns:
        A row a choice: accuracies on held-out screens and on unseen ones, over the seeds.
    """
    rows = []
    for choice in compared:
        spec, config = choice.spec, choice.config
        fitted = kept.step(
            f"head {spec.name} {_told(config)}",
            lambda spec=spec, config=config: fit(folder / spec.name, config, seeds),  # type: ignore[misc]
        )
        rows.append(
            {"factor": choice.factor, "value": choice.value, "default": choice.default}
            | {"spec": asdict(spec), "config": config.model_dump()}
            | fitted
        )
        advance(len(rows))
    return rows


def fit(features: Path, config: Stage1Config, seeds: Sequence[int]) -> dict[str, Any]:
    """Accuracies of a head on its held-out screens and on unseen ones, by seed.

    Args:
        features: Folder with the caches `learnt` and `unseen`.
        config: How heads are trained.
        seeds: One head a seed, which replaces the configuration's.
    """
    unseen = load_features(features / _UNSEEN)
    own, new, start = [], [], time.monotonic()
    cases = 0
    for seed in seeds:
        chosen = config.model_copy(update={"seed": seed})
        result = train_stage1(features / LEARNT, config=chosen, progress=False)
        own.append(result.accuracy["held_out"])
        new.append(accuracy(result.head, unseen))
        cases = result.cases["held_out"]
    return {
        "held_out": spread(own) | {"cases": cases},
        "unseen": spread(new) | {"cases": len(unseen)},
        "fit_seconds": (time.monotonic() - start) / len(seeds),
    }


def accuracy(head: RouterHead | LayeredHead, table: FeatureTable) -> float:
    """Share of a cache's rows whose own expert has the largest logit."""
    found = head_logits(head, table, torch.arange(len(table))).argmax(dim=1)
    return float((found == table.label).double().mean())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, and the values."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def best(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The value of each factor with the highest unseen plus held-out mean; ties keep the default.

    Both count alike: a head that knows its own screens only is no better than one that does not
    know them well.
    """
    factors = dict.fromkeys(row["factor"] for row in rows)
    return {
        factor: max((row for row in rows if row["factor"] == factor), key=_merit)["value"]
        for factor in factors
    }


def layers_of(model: Path) -> int:
    """Decoder layers of a checkpoint."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return int(config["text_config"]["num_hidden_layers"])


def _told(config: Stage1Config) -> str:
    return f"width {config.width} mixup {config.mixup} averaging {config.averaging}"


def _merit(row: dict[str, Any]) -> tuple[float, bool]:
    return round(row["held_out"]["mean"] + row["unseen"]["mean"], 6), row["default"]
