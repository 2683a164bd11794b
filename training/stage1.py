"""Stage 1: the router's head on cached features, by cross-entropy, its temperature, its memory.

Knows features and labels; knows neither the executor nor the bundle's files.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from router_service.core import Mode
from router_service.manifest import Calibration, ModeSetting
from training.calibration import expected_calibration_error, fit_temperature, log_loss
from training.events import Events
from training.feature_index import FeatureIndex
from training.features import FeatureTable, load_features
from training.heads import LayeredHead, RouterHead, whole
from training.known_screens import KnownLooks, KnownScreens, known_looks, known_screens
from training.lessons import Lessons
from training.losses import entropy_penalty
from training.moments import ROWS_AT_ONCE
from training.shown import ShownImages
from training.splitting import shown_by, split_by_image
from training.stage1_config import Stage1Config

# From this mean confidence on held-out cases, the heaviest expert alone is as good as the mixture.
SHARP_CONFIDENCE = 0.9


@dataclass(frozen=True)
class Stage1Result:
    """A trained head, in eval mode, and all that its bundle states.

    Attributes:
        accuracy: Split name (train, validation, held_out) to accuracy.
        cases: Split name to number of rows.
        temperature: Fitted on the held-out split.
        mode: The default mode that the held-out confidences allow.
        known: Of the train split's screens, or of a cache of their own.
        known_digest: Of that cache's records; empty: the train split's.
        shown: The images of all splits, and those that what is known was learnt from.
    """

    head: RouterHead | LayeredHead
    known: KnownScreens
    known_digest: str
    index: FeatureIndex
    config: Stage1Config
    temperature: float
    calibration: Calibration
    mode: ModeSetting
    cases: Mapping[str, int]
    accuracy: Mapping[str, float]
    shown: ShownImages


def train_stage1(
    features_dir: Path,
    *,
    config: Stage1Config | None = None,
    known: Path | None = None,
    progress: bool = True,
    events: Path | None = None,
) -> Stage1Result:
    """Train a head on a feature cache. The same cache and config give the same head.

    Args:
        features_dir: What `cache_features` wrote.
        config: How to train; None for the defaults.
        known: Cache of screens in the looks that the router is to know, where it learns from more
            than the experts can answer in; None: the train split's.
        progress: Show a progress bar.
        events: Folder that gets TensorBoard's; None for none.

    Returns:
        The averaged head with the lowest validation loss, calibrated.

    Raises:
        ArithmeticError: No validation loss is a number.
        ValueError: A cache is not whole, some expert has fewer than three images, or what is to be
            known is of other experts or features.
    """
    config = config or Stage1Config()
    table = load_features(features_dir)
    splits = split_by_image(table, config)
    looks = known_looks(known, table.index, shown_by(table, splits)) if known else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        with Events(events) as told:
            head = _train(table, splits, config, progress, told)
    return judged(head, table, splits, config, looks)


def judged(
    head: RouterHead | LayeredHead,
    table: FeatureTable,
    splits: Mapping[str, torch.Tensor],
    config: Stage1Config,
    known: KnownLooks | None,
) -> Stage1Result:
    """A head, however it was trained, calibrated and measured on the splits of a cache.

    Args:
        head: In the order of the cache's experts.
        table: The features.
        splits: Row indices of each split.
        config: Of the splits.
        known: What the router is to know; None: the train split's screens.
    """
    logits = {name: head_logits(head, table, rows) for name, rows in splits.items()}
    held_out, labels = logits["held_out"], table.label[splits["held_out"]]
    temperature = fit_temperature(held_out, labels)
    shown = shown_by(table, splits)
    return Stage1Result(
        head=head,
        known=known_screens(table, splits["train"]) if known is None else known.screens,
        known_digest="" if known is None else known.dataset_digest,
        index=table.index,
        config=config,
        temperature=temperature,
        calibration=_calibration(held_out, labels, temperature),
        mode=default_mode(held_out, temperature),
        cases={name: len(rows) for name, rows in splits.items()},
        accuracy={
            name: float((logits[name].argmax(dim=1) == table.label[rows]).double().mean())
            for name, rows in splits.items()
        },
        shown=shown if known is None else shown.joined(known.shown),
    )


def head_logits(
    head: RouterHead | LayeredHead, table: FeatureTable, rows: torch.Tensor
) -> torch.Tensor:
    """Logits [n, K] of some rows, without dropout or gradient; of a head with layers their mean."""
    head.eval()
    with torch.inference_mode():
        parts = torch.split(rows, ROWS_AT_ONCE)
        return torch.cat([whole(head(table.text[part], table.vision[part])) for part in parts])


def default_mode(logits: torch.Tensor, temperature: float) -> ModeSetting:
    """TOP1 where the held-out gates are sharp, else SOFT, and why.

    Args:
        logits: [n, K] of the held-out split.
        temperature: The fitted one.
    """
    confidence = float(torch.softmax(logits / temperature, dim=1).max(dim=1).values.mean())
    sharp = confidence >= SHARP_CONFIDENCE
    return ModeSetting(
        Mode.TOP1 if sharp else Mode.SOFT,
        f"mean confidence on {len(logits)} held-out cases is {confidence:.3f}, "
        f"{'at least' if sharp else 'below'} {SHARP_CONFIDENCE}",
    )


def _train(
    table: FeatureTable,
    splits: Mapping[str, torch.Tensor],
    config: Stage1Config,
    progress: bool,
    events: Events,
) -> RouterHead:
    spec, experts = table.index.feature_spec, len(table.index.experts)
    head = RouterHead(spec.text_dim, spec.vision_dim, experts, config.width, config.dropout)
    lessons = Lessons(table, splits, config.agent_reliability, config.mixup)
    head.text_scale.learn(table.text, lessons.rows)
    head.vision_scale.learn(table.vision, lessons.rows)
    average = AveragedModel(head, avg_fn=functools.partial(follow, config.averaging))
    averaged = average.module
    assert isinstance(averaged, RouterHead)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    best: RouterHead | None = None
    best_loss, waited = float("inf"), 0
    begun = time.monotonic()
    with Progress(disable=not progress) as bar:
        task = bar.add_task("stage 1", total=config.max_epochs)
        for epoch in range(1, config.max_epochs + 1):
            learnt = _epoch(head, average, optimizer, lessons, config.batch_rows)
            logits = head_logits(averaged, table, splits["validation"])
            labels = table.label[splits["validation"]]
            loss = float(F.cross_entropy(logits, labels, lessons.weights))
            told = _told(logits, labels, table.index.names)
            told |= {"loss/train": learnt, "loss/validation": loss}
            events.add(epoch, told | {"rate/router": config.learning_rate})
            speed = epoch * len(lessons.rows) / (time.monotonic() - begun)
            said = f"stage 1: validation loss {loss:.4f}, {speed:,.0f} records a second"
            bar.update(task, advance=1, description=said)
            waited += 1
            if loss < best_loss:
                best, best_loss, waited = copy.deepcopy(averaged), loss, 0
            if waited >= config.patience_epochs:
                break
    if best is None:
        raise ArithmeticError(
            "no validation loss is a number; look for features that are none, or lower the "
            "learning rate"
        )
    return best.eval()


def follow(
    averaging: float, average: torch.Tensor, weights: torch.Tensor, steps: torch.Tensor | int
) -> torch.Tensor:
    """The running average of a weight after one more step.

    Args:
        averaging: As of `Stage1Config`.
        average: So far.
        weights: After the step.
        steps: Before it, in all.
    """
    kept = min(averaging, (1 + int(steps)) / (10 + int(steps)))
    return torch.lerp(average, weights, 1 - kept)


def _epoch(
    head: RouterHead,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    lessons: Lessons,
    batch_rows: int,
) -> float:
    """One pass over the rows; the mean loss of its steps."""
    head.train()
    losses = []
    for batch in torch.split(lessons.rows[torch.randperm(len(lessons.rows))], batch_rows):
        loss = lessons.loss(head, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(head)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _told(logits: torch.Tensor, labels: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """What TensorBoard is told of the validation split, at temperature 1 as in training."""
    probabilities = logits.softmax(dim=1)
    marginals = zip(names, probabilities.mean(dim=0).tolist(), strict=True)
    return {
        "gates/accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "gates/entropy": float(entropy_penalty(probabilities)),
        "gates/temperature": 1.0,
        **{f"marginal/{name}": share for name, share in marginals},
    }


def _calibration(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> Calibration:
    return Calibration(
        method="temperature scaling on the held-out split, Platt targets",
        cases=len(labels),
        log_loss_before=log_loss(logits, labels, 1.0),
        log_loss_after=log_loss(logits, labels, temperature),
        ece_before=expected_calibration_error(logits, labels, 1.0),
        ece_after=expected_calibration_error(logits, labels, temperature),
    )
