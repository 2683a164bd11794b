"""Trains the miniature's experts: one PEFT LoRA per kind of screen, on that screen's tasks.

Knows PEFT and the experts' tasks; does not know how the base was made.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from executor_service.model.checkpoint import base_digest
from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from training.data.calls import format_calls
from training.data.synthesize import DRAWS
from training.expert import write_expert
from training.lora import lora_config
from training.miniature.attention import attend_in_blocks
from training.miniature.base import EXPERT_SYSTEMS, GUIDED_LAYER
from training.miniature.fit import Fit, FitConfig
from training.miniature.guide import Guide
from training.miniature.marks import lines, marks, targets
from training.miniature.speed import fastest_device, patches_as_products
from training.miniature.stream import (
    RESUMED_OFFSET,
    Draw,
    ScreenStream,
    Source,
    in_background,
)
from training.packing import QuestionAnswer
from training.screens.tasks import (
    CALENDAR,
    CLAIM_WINDOW,
    DESKTOP,
    Task,
    tasks_for,
)

# What the tower cannot read, nothing that is built on it can find. Names of an open list and of the
# users share an image token with their neighbours; a schedule is shown at half its size,
# where a name is four pixels high; dates and rows of icons take arithmetic and counting.
LEFT_OUT = frozenset(
    {
        *("provider-dropdown", "select-provider", "select-claim-form"),
        *("click-appointment", "open-appointment", "hover-appointment", "find-appointment"),
        *("select-user", "select-absent-user"),
        "open-icon-row",
        *("select-note", "scroll-to-date"),
        *("select-entry", "select-member"),
    }
)


@dataclass(frozen=True)
class ExpertRecipe:
    """One expert of the miniature."""

    label: int
    rank: int
    draw: Draw
    rows: int
    steps: int
    questions: int = 18


# Ranks differ, as those of the user's experts do: the claim window has the most to say.
_RANKS = {CLAIM_WINDOW: 16}
_ROWS = {CALENDAR: 2}  # Its screen is small.
_STEPS = {DESKTOP: 1200}  # Its writing is small.
RECIPES = {
    expert: ExpertRecipe(
        label, _RANKS.get(expert, 8), draw, _ROWS.get(expert, 1), _STEPS.get(expert, 800)
    )
    for label, (expert, draw) in enumerate(DRAWS.items())
}


def train_expert(name: str, base: Path, work: Path, *, seed: int) -> Path:
    """Trains one expert, or goes on where a stopped run left off.

    Args:
        name: Key of `RECIPES`.
        base: The pretrained checkpoint.
        work: Folder of the run.
        seed: Of adapter weights and screens.

    Returns:
        The expert's directory: `adapter/` as PEFT writes it, and `expert.json`.
    """
    recipe, out = RECIPES[name], work / "experts" / name
    if (out / "expert.json").exists():
        return out
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, device_map=fastest_device()
    )
    torch.manual_seed(seed)
    adapted = get_peft_model(model, lora_config(model, recipe.rank))
    patches_as_products(adapted)
    attend_in_blocks(model)
    guide = Guide(model.model.language_model, layer=GUIDED_LAYER)
    fit = Fit(
        adapted,
        model.model,
        model.lm_head,
        FitConfig(steps=recipe.steps, learning_rate=2e-3, warmup=30, guide_weight=0.3),
        work / f"{name}-state",
        pad_id=tokenizer.pad_token_id,
        guide=guide,
    )
    source = Source(recipe.draw, ask_tasks, recipe.rows, recipe.questions, (EXPERT_SYSTEMS[name],))
    stream = ScreenStream(
        ScreenReader(base),
        PromptBuilder(tokenizer),
        [source],
        seed=seed + RESUMED_OFFSET * (fit.step + 1),
    )
    fit.run(in_background(stream), sources=1, title=name)
    about = {
        "label": recipe.label,
        "system_prompt": EXPERT_SYSTEMS[name],
        "task_types": sorted(_task_types(recipe.draw)),
        "base_digest": base_digest(base),
    }
    write_expert(adapted, out, about, "molora/miniature")
    return out


def ask_tasks(screen: Any, rng: random.Random, count: int) -> list[QuestionAnswer]:
    """Tasks of a drawn screen, each kind of instruction (its type and first word) equally often."""
    by_kind: dict[tuple[str, str], list[QuestionAnswer]] = {}
    found = {mark.name: (mark.x, mark.y) for mark in marks(screen)}
    # A line is clicked in its middle but known by the number at its left end, a tool by its sign.
    names = {box.centre: name for name, box in (targets(screen) | lines(screen)).items()}
    for task in _tasks(screen, rng):
        (x, y), (width, height) = task.real_coords, screen.image.size
        look = found.get(names.get((x, y), ""), (x / width, y / height))
        pair = QuestionAnswer(task.prompt, format_calls(task.calls), (look,))
        by_kind.setdefault((task.task_type, task.prompt.split()[0]), []).append(pair)
    return [rng.choice(by_kind[rng.choice(list(by_kind))]) for _ in range(count)]


def _tasks(screen: Any, rng: random.Random) -> list[Task]:
    return [task for task in tasks_for(screen, rng) if task.task_type not in LEFT_OUT]


def _task_types(draw: Callable[[random.Random], Any]) -> set[str]:
    rng = random.Random(0)  # noqa: S311 - drawings, not secrets
    return {task.task_type for _ in range(20) for task in _tasks(draw(rng), rng)}
