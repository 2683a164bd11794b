"""What the miniature's tower learns in equal time: by AdamW or Muon, from large steps or small.

    python benchmarks/miniature_tower.py [--json FILE] [--seconds N]

Each way begins with the same random weights and sees freshly drawn screens for the same time, its
learning rate falling to nothing over it; then all are asked about the same new ones. Found is the
share of marks that their image token names, placed that of bins of width and height that are right.
Knows no question.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from miniature_steps import write_report
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from executor_service.model.screen import ScreenReader
from training.cores import cores
from training.miniature.attention import attend_in_blocks
from training.miniature.base import SCREENS, write_start
from training.miniature.fit import FitConfig, learning_rate
from training.miniature.muon import MuonAdamW
from training.miniature.speed import patches_as_products
from training.miniature.stream import in_background
from training.miniature.tower import LessonStream, MarkHead, lesson_loss

RATE = 2e-3
# Optimiser and screens to a step.
WAYS = (("adamw", 6), ("adamw", 2), ("muon", 2))
JUDGED = 11


class AdamW:
    """AdamW for all parameters, stepped as `MuonAdamW` is."""

    def __init__(self, *modules: nn.Module) -> None:
        parameters = [p for module in modules for p in module.parameters()]
        self._adamw = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, learning_rate: float) -> None:
        """Steps all parameters, then forgets their gradients."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--seconds", type=float, default=240, help="that each way learns for")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "untrained"
        write_start(start, seed=0)
        rows = [measure(start, *way, seconds=arguments.seconds) for way in WAYS]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    if arguments.json:
        write_report(arguments.json, seconds=arguments.seconds, ways=rows)
    return 0


def measure(start: Path, optimiser: str, screens: int, *, seconds: float) -> dict[str, Any]:
    """What a tower knows after so many seconds.

    Args:
        start: The untrained checkpoint.
        optimiser: `adamw` or `muon`.
        screens: To a step.
        seconds: Of training, drawing included.
    """
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    patches_as_products(model)
    attend_in_blocks(model)
    vision: Any = model.config.vision_config
    head = MarkHead(vision.out_hidden_size)
    tower = model.model.visual
    steps = {"adamw": AdamW, "muon": MuonAdamW}[optimiser](tower, head)
    reader = ScreenReader(start)
    lessons = in_background(LessonStream(reader, SCREENS, seed=1, screens=screens))
    next(lessons)
    parameters = [*tower.parameters(), *head.parameters()]
    # The schedule is of time: a thousandth of it is one of its steps.
    config = FitConfig(steps=1000, learning_rate=RATE, warmup=50)
    began, taken = time.perf_counter(), 0
    while (passed := (time.perf_counter() - began) / seconds) < 1:
        loss, _, _ = lesson_loss(model.model, head, next(lessons))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, config.clip)
        steps.step(learning_rate(config, int(1000 * passed)))
        taken += 1
    judged = itertools.islice(LessonStream(reader, SCREENS, seed=2, screens=1), JUDGED)
    with torch.no_grad():
        losses, found, placed = zip(
            *(lesson_loss(model.model, head, one) for one in judged), strict=True
        )
    return {
        "optimiser": optimiser,
        "screens": screens,
        "steps": taken,
        "loss": statistics.mean(map(float, losses)),
        "found": statistics.mean(found),
        "placed": statistics.mean(placed),
    }


if __name__ == "__main__":
    raise SystemExit(main())
