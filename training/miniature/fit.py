"""The training loop that the base and the experts share.

Knows batches, optimiser and checkpoints on disk; does not know what a screen shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from training.cores import cores
from training.miniature.guide import Guide
from training.miniature.muon import MuonAdamW
from training.miniature.speed import mixed_precision, moved
from training.packing import IGNORED, PackedBatch, PackedRow, answer_loss, collate


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to learn."""

    steps: int
    learning_rate: float
    warmup: int = 100
    guide_weight: float = 1.0
    clip: float = 1.0
    save_every: int = 200


@dataclass
class Fit:
    """A model with its optimiser; resumes from `folder` if it holds a state.

    Args:
        model: Anything whose trainable parameters are to be fitted.
        backbone: The `Qwen3VLModel` in it.
        head: The LM head.
        folder: Where states are kept.
        guide: Added to the loss.
    """

    model: nn.Module
    backbone: Qwen3VLModel
    head: nn.Module
    config: FitConfig
    folder: Path
    pad_id: int
    guide: Guide
    step: int = 0
    _optimiser: MuonAdamW = field(init=False)

    def __post_init__(self) -> None:
        self._optimiser = MuonAdamW(self.model, self.guide)
        if self._state_file.exists():
            state = torch.load(self._state_file, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["trained"], strict=False)
            self._optimiser.load_state_dict(state["optimiser"])
            self.step = state["step"]
            self.guide.load_state_dict(state["guide"])

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.pt"

    def run(self, turns: Iterator[list[PackedRow]], *, sources: int, title: str) -> None:
        """Trains up to `config.steps`, one optimiser step per `sources` turns."""
        self.model.train()
        for step, report in steps_with_progress(title, self.step, self.config.steps):
            losses, exacts = self._one_step(turns, sources)
            self.step = step + 1
            notes = (
                f"loss {loss:.3f} exact {exact:.0%}"
                for loss, exact in zip(losses, exacts, strict=True)
            )
            report("  ".join(notes))
            if self.step % self.config.save_every == 0:
                self.save()
        self.save()
        self.model.eval()

    def save(self) -> None:
        """Writes parameters, optimiser and step, atomically."""
        named = self.model.named_parameters()
        trained = {name: p.detach() for name, p in named if p.requires_grad}
        state = {
            "step": self.step,
            "trained": trained,
            "optimiser": self._optimiser.state_dict(),
            "guide": self.guide.state_dict(),
        }
        write_state(state, self._state_file)

    def _one_step(
        self, turns: Iterator[list[PackedRow]], sources: int
    ) -> tuple[list[float], list[float]]:
        """One optimiser step; returns loss (nats per token) and exact share of each source."""
        losses, exacts = [], []
        for _ in range(sources):
            batch = moved(collate(next(turns), pad_id=self.pad_id), self.backbone.device)
            with mixed_precision():
                seen = self.backbone(**batch.model_inputs(), use_cache=False)
                hidden = seen.last_hidden_state
            hidden = hidden.float()
            loss = answer_loss(hidden, self.head, batch.labels)
            exacts.append(exact_share(hidden, self.head, batch))
            losses.append(loss.item())
            loss = loss + self.config.guide_weight * self.guide.loss(batch)
            (loss / sources).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self._optimiser.step(learning_rate(self.config, self.step))
        return losses, exacts


def write_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes what a stopped run goes on from, whole or not at all.

    Args:
        state: Tensors, numbers and containers of them.
        path: The file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(dict(state), partial)
    partial.replace(path)


def learning_rate(config: FitConfig, step: int) -> float:
    """Linear warm-up, then cosine down to a hundredth of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def steps_with_progress(
    title: str, first: int, last: int
) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Yields each step's number and a function that shows a note beside the bar.

    Every fiftieth note is also printed, so that a log without a terminal tells how it goes.
    """
    threads = torch.get_num_threads()
    # Beside a GPU the CPU has little to do, and threads that wait for it take cores from drawing.
    torch.set_num_threads(1 if torch.cuda.is_available() else cores())
    try:
        with _progress() as progress:
            bar = progress.add_task(title, total=last, completed=first, note="")
            for step in range(first, last):

                def report(note: str, done: int = step + 1) -> None:
                    progress.update(bar, completed=done, note=note)
                    if done % 50 == 0:
                        progress.console.print(f"{title} step {done}: {note}", highlight=False)

                yield step, report
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def exact_share(hidden: torch.Tensor, head: nn.Module, batch: PackedBatch) -> float:
    """Share of answers of which every token is the most likely one (what greedy would write)."""
    learnt = batch.labels != IGNORED
    right = head(hidden[learnt]).argmax(-1) == batch.labels[learnt]
    # An answer's labels are consecutive; a gap starts the next one.
    places = learnt.flatten().nonzero().flatten()
    answer = torch.cat([places.new_zeros(1), (places.diff() > 1).long().cumsum(0)])
    wrong = hidden.new_zeros(int(answer[-1]) + 1).index_add_(0, answer, (~right).float())
    return float((wrong == 0).float().mean())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
