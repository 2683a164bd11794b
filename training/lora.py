"""How an expert is laid out: which modules of a base have how much rank.

Knows PEFT's configuration and the modules that experts may adapt; trains nothing.
"""

from __future__ import annotations

from peft import LoraConfig
from torch import nn

from executor_service.model.targets import RowKind, find_targets


def lora_config(model: nn.Module, rank: int) -> LoraConfig:
    """LoRA on every linear of the decoder, on the tower's attention outputs and patch embedding.

    As the user's trainer writes it: full module paths, alpha = 2r, half the rank in the tower.

    Args:
        model: A `Qwen3VLForConditionalGeneration`.
        rank: r of the decoder's linears, even.
    """
    targets = find_targets(model).values()
    language = [target.name for target in targets if target.kind is RowKind.TEXT]
    vision = [
        target.name
        for target in targets
        if target.kind is RowKind.PATCH and (target.kernel or target.name.endswith(".attn.proj"))
    ]
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=[*language, *vision],
        rank_pattern=dict.fromkeys(vision, rank // 2),
        alpha_pattern=dict.fromkeys(vision, rank),
        task_type="CAUSAL_LM",
    )
