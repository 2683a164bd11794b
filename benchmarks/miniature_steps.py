"""How long a step of the miniature's experts takes, attending in blocks and by torch's own kernel.

    python benchmarks/miniature_steps.py [--json FILE] [--rounds N] [EXPERT ...]

Both take the same steps on the same screens, in turn; `sdpa_over_blocks` is the median of the
rounds' ratios. Drawing is not timed. On a CPU: a GPU has its own kernels. Knows no task.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from training.cores import cores
from training.lora import lora_config
from training.miniature.attention import attend_in_blocks
from training.miniature.base import EXPERT_SYSTEMS, GUIDED_LAYER
from training.miniature.experts import RECIPES, ask_tasks
from training.miniature.fit import Fit, FitConfig
from training.miniature.guide import Guide
from training.miniature.speed import mixed_precision, patches_as_products
from training.miniature.stream import ScreenStream, Source
from training.packing import PackedRow

BASE = Path(__file__).resolve().parents[1] / "miniature" / "base"
STEPS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON.

    Args:
        argv: Flags; None for the process's own.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("experts", nargs="*", default=list(RECIPES), metavar="EXPERT")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--rounds", type=int, default=5, help="of both in turn")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.experts) - set(RECIPES):
        parser.error(f"no such expert: {', '.join(sorted(unknown))}; one of {', '.join(RECIPES)}")
    rows = {name: measure(name, arguments.rounds) for name in arguments.experts}
    table = Table("expert", "blocks, s a step", "sdpa, s a step", "sdpa_over_blocks")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    Console().print(table)
    if arguments.json:
        write_report(arguments.json, rounds=arguments.rounds, experts=rows)
    return 0


def write_report(path: Path, **figures: Any) -> None:
    """Writes figures, and what they were measured on, as JSON.

    Args:
        path: The file; its folder is made.
        figures: By name.
    """
    about = {
        "machine": platform.processor() or platform.machine(),
        "cores": cores(),
        "torch": torch.__version__,
        "bfloat16": mixed_precision()._enabled,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | figures, indent=2) + "\n")


def measure(name: str, rounds: int) -> dict[str, float]:
    """Medians of a step's seconds by either way, and of their ratio.

    Args:
        name: An expert of the miniature.
        rounds: Of both in turn, after one that is not counted.
    """
    turns = _turns(name)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for counted in (False, *[True] * rounds):
        for blocks in seconds:
            took = _seconds(name, turns, blocks=blocks)
            if counted:
                seconds[blocks].append(took)
    ratios = [sdpa / blocks for blocks, sdpa in zip(seconds[True], seconds[False], strict=True)]
    return {
        "blocks": statistics.median(seconds[True]),
        "sdpa": statistics.median(seconds[False]),
        "sdpa_over_blocks": statistics.median(ratios),
    }


def _turns(name: str) -> list[list[PackedRow]]:
    recipe = RECIPES[name]
    source = Source(recipe.draw, ask_tasks, recipe.rows, recipe.questions, (EXPERT_SYSTEMS[name],))
    builder = PromptBuilder(AutoTokenizer.from_pretrained(BASE))
    stream = ScreenStream(ScreenReader(BASE), builder, [source], seed=1)
    return list(itertools.islice(stream, STEPS))


def _seconds(name: str, turns: list[list[PackedRow]], *, blocks: bool) -> float:
    """Of one step, on average over `STEPS` of a new expert."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(model, lora_config(model, RECIPES[name].rank))
    patches_as_products(adapted)
    if blocks:
        attend_in_blocks(model)
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(
            adapted,
            model.model,
            model.lm_head,
            FitConfig(steps=STEPS, learning_rate=2e-3),
            Path(folder),
            pad_id=AutoTokenizer.from_pretrained(BASE).pad_token_id,
            guide=Guide(model.model.language_model, layer=GUIDED_LAYER),
        )
        began = time.perf_counter()
        fit.run(iter(turns), sources=1, title=name)
        return (time.perf_counter() - began) / STEPS


if __name__ == "__main__":
    raise SystemExit(main())
