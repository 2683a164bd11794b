"""A Qwen3-VL of a few thousand parameters, PEFT adapters for it, and inputs: for the tests."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from executor_service.core import GateVector
from executor_service.model.experts import ExpertLocation, ExpertSet
from executor_service.model.gated import GatedModel, Routing
from executor_service.model.loading import load_expert
from executor_service.model.prompt import BuiltPrompt
from executor_service.model.screen import PixelInput

VOCABULARY = 96
VISION_START, VISION_END, IMAGE, VIDEO = 90, 91, 92, 93
PATCH, MERGE = 4, 2
LLM_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION_MODULES = (
    "model.visual.patch_embed.proj",
    "model.visual.blocks.0.attn.proj",
    "model.visual.blocks.1.attn.proj",
)


def tiny_config() -> Qwen3VLConfig:
    """GQA, interleaved M-RoPE, DeepStack: every part of the 8B, none of its size."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )


def tiny_base(seed: int = 0) -> Any:
    """The base model with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    config = tiny_config()
    config._attn_implementation = "sdpa"
    model = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        # The initialiser's 0.02 makes a network in which nothing matters.
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.15)
    return model.eval().requires_grad_(False)


def tiny_model(seed: int = 0) -> GatedModel:
    """The gated model around `tiny_base`."""
    return GatedModel(tiny_base(seed), tokenizer=None, base_digest="0" * 64)


@dataclass(frozen=True)
class AdapterRecipe:
    """How to make one adapter. `vision_rank` 0 leaves the tower alone."""

    rank: int = 4
    alpha: float = 8
    rslora: bool = False
    llm: tuple[str, ...] = LLM_LINEARS
    vision: tuple[str, ...] = VISION_MODULES
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    seed: int = 0


def write_adapter(directory: Path, recipe: AdapterRecipe) -> Path:
    """An adapter as PEFT writes it, with weights that matter, in `directory`."""
    # PEFT writes patterns sorted and takes the first that fits. In another order it could not read
    # its own file where two of them fit.
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        target_modules=[*recipe.llm, *recipe.vision],
        rank_pattern=dict(sorted(recipe.rank_pattern.items())),
        alpha_pattern=dict(sorted(recipe.alpha_pattern.items())),
    )
    with peft_warnings():
        adapted = get_peft_model(tiny_base(), config)
    noise = torch.Generator().manual_seed(1000 + recipe.seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=noise)
    adapted.save_pretrained(directory)
    return directory


def write_experts(root: Path, recipes: Mapping[str, AdapterRecipe]) -> dict[str, Path]:
    """Adapters in `<root>/<name>/adapter`; their directories by name, sorted."""
    return {name: write_adapter(root / name / "adapter", recipes[name]) for name in sorted(recipes)}


def load_set(model: GatedModel, directories: Mapping[str, Path]) -> ExpertSet:
    """All of them, loaded and probed."""
    locations = [ExpertLocation(name, path) for name, path in directories.items()]
    return model.expert_set(load_expert(model, location) for location in locations)


def peft_model(directories: dict[str, Path]) -> PeftModel:
    """PEFT's model over the same base, with every adapter loaded under its name."""
    names = list(directories)
    with peft_warnings():
        model = PeftModel.from_pretrained(tiny_base(), directories[names[0]], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(directories[name], adapter_name=name)
    return model.eval()


@contextmanager
def merged(model: PeftModel, names: Sequence[str], gates: GateVector) -> Iterator[None]:
    """The reference of every mixture: W + sum of g_k * get_delta_weight(k), as plain weights."""
    before: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        row = gates.weights
        if gates.layers and ".language_model.layers." in path:
            row = gates.layers[int(path.split(".layers.")[1].split(".")[0])]
        weight = module.get_base_layer().weight
        before.append((weight, weight.data.clone()))
        for name, gate in zip(names, row, strict=True):
            if name in module.lora_A:
                weight.data += gate * module.get_delta_weight(name)
    try:
        with model.disable_adapter():
            yield
    finally:
        for weight, data in before:
            weight.data.copy_(data)


@contextmanager
def peft_warnings() -> Iterator[None]:
    """PEFT calls what transformers has deprecated, and tells of patterns without a module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", ".*did not match any targeted module", RuntimeWarning)
        yield


def screen(rows: int, columns: int, seed: int = 0) -> PixelInput:
    """A screen of rows x columns image tokens."""
    noise = torch.Generator().manual_seed(seed)
    patches = rows * columns * MERGE**2
    pixels = torch.randn(patches, 3 * 2 * PATCH * PATCH, generator=noise)
    grid = (1, rows * MERGE, columns * MERGE)
    return PixelInput(pixels, grid, grid[2] * PATCH, grid[1] * PATCH, rows * columns)


def prompt(image_tokens: int, text: Sequence[int], before: Sequence[int] = (5, 6)) -> BuiltPrompt:
    """A prompt: text, the screen, text."""
    head = (*before, VISION_START)
    image = (IMAGE,) * image_tokens
    return BuiltPrompt((*head, *image, VISION_END, *text), len(head), image_tokens)


def reference_logits(model: Any, row: BuiltPrompt, pixels: PixelInput) -> torch.Tensor:
    """Logits [T, vocab] of one row by transformers' own forward, whatever wraps the model."""
    ids = torch.tensor([row.ids])
    output = model(
        input_ids=ids,
        pixel_values=pixels.pixel_values,
        image_grid_thw=torch.tensor([pixels.grid_thw]),
        mm_token_type_ids=(ids == IMAGE).int(),
        attention_mask=torch.ones_like(ids),
    )
    return output.logits[0]


def gated_logits(
    model: GatedModel, experts: ExpertSet, gates: GateVector, row: BuiltPrompt, pixels: PixelInput
) -> torch.Tensor:
    """Logits [T, vocab] of one row by the gated model."""
    routing = Routing(experts, (gates,))
    with torch.no_grad():
        [logits] = model.forward_rows([row], model.encode_vision([pixels], routing), routing)
    return logits


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, by the largest value of the reference."""
    return float((value - reference).abs().max() / reference.abs().max())


def edit_config(directory: Path, **changes: object) -> None:
    """Changes fields of `adapter_config.json`."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
