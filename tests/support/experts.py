"""PEFT experts for the untrained checkpoint: random, but strong enough to change an answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import Qwen3VLForConditionalGeneration

from training.lora import lora_config


def plain_base(checkpoint: Path) -> Any:
    """The checkpoint as transformers loads it, float32, without anything of molora."""
    return Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


def write_expert(
    checkpoint: Path,
    directory: Path,
    *,
    rank: int,
    seed: int,
    vision: bool = True,
    **about: object,
) -> Path:
    """An expert as the user's trainer writes it: LLM linears, tower attention and the Conv3d.

    Args:
        checkpoint: Its base.
        directory: Gets `adapter/`, and `expert.json` if there is anything to say.
        rank: In the LLM; half of it in the tower.
        seed: Of the weights, A and B.
        vision: Whether the tower is adapted too.
        about: Fields of `expert.json`.

    Returns:
        `directory`.
    """
    base = plain_base(checkpoint)
    config = lora_config(base, rank)
    if not vision:
        config.exclude_modules = r".*\.visual\..*"
        config.rank_pattern, config.alpha_pattern = {}, {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = get_peft_model(base, config)
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.12, generator=noise)
    adapted.save_pretrained(directory / "adapter")
    if about:
        (directory / "expert.json").write_text(json.dumps(about))
    return directory
