"""An adapter of the user's kind against the 8B's architecture, key by key and without weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from executor_service.model.adapters import WEIGHTS_FILE, match_keys, read_adapter
from executor_service.model.checkpoint import load_config
from executor_service.model.experts import targets_vision
from executor_service.model.targets import RowKind, Target, find_targets
from service_chassis.errors import FailedPrecondition, InvalidArgument
from tests.unit.executor_service.model import tiny

LAYERS, BLOCKS = 36, 27
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 4096, 12_288, 32, 8, 128
VISION_HIDDEN = 1152
KERNEL = (3, 2, 16, 16)
PATCH_EMBED = "model.visual.patch_embed.proj"
# The user's adapters have half the rank in the tower.
RANK, VISION_RANK = 2, 1
SIZES = {
    "self_attn.q_proj": (HIDDEN, HEADS * HEAD_DIM),
    "self_attn.k_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.v_proj": (HIDDEN, KV_HEADS * HEAD_DIM),
    "self_attn.o_proj": (HEADS * HEAD_DIM, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}
LANGUAGE_MODULES = {
    f"model.language_model.layers.{layer}.{name}": size
    for layer in range(LAYERS)
    for name, size in SIZES.items()
}
VISION_MODULES = {
    f"model.visual.blocks.{block}.attn.proj": (VISION_HIDDEN, VISION_HIDDEN)
    for block in range(BLOCKS)
} | {PATCH_EMBED: (torch.Size(KERNEL).numel(), VISION_HIDDEN)}


def config_8b() -> Qwen3VLConfig:
    """Qwen3-VL-8B-Instruct's `config.json`, as far as it decides names and shapes."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151_936,
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": BLOCKS,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 4304,
            "num_heads": 16,
            "patch_size": KERNEL[2],
            "temporal_patch_size": KERNEL[1],
            "spatial_merge_size": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    )


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Target]:
    checkpoint = tmp_path_factory.mktemp("8b")
    config_8b().save_pretrained(checkpoint)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(load_config(checkpoint))
    parameters = list(model.parameters())
    assert all(parameter.is_meta for parameter in parameters)
    assert 8e9 < sum(parameter.numel() for parameter in parameters) < 9e9
    return find_targets(model)


def tensors(rank: int, vision_rank: int, device: str) -> dict[str, torch.Tensor]:
    """What PEFT's state dict holds for the 252 + 28 modules."""
    made: dict[str, torch.Tensor] = {}
    for name, (d_in, d_out) in (LANGUAGE_MODULES | VISION_MODULES).items():
        r = vision_rank if name in VISION_MODULES else rank
        a, b = (
            ((r, *KERNEL), (d_out, r, 1, 1, 1)) if name == PATCH_EMBED else ((r, d_in), (d_out, r))
        )
        made[f"base_model.model.{name}.lora_A.weight"] = torch.ones(
            a, dtype=torch.bfloat16, device=device
        )
        made[f"base_model.model.{name}.lora_B.weight"] = torch.ones(
            b, dtype=torch.bfloat16, device=device
        )
    return made


@pytest.fixture
def adapter(tmp_path) -> Path:
    """The files as their public trainer leaves them: full paths, patterns for the tower."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "Qwen/Qwen3-VL-8B-Instruct",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": [*LANGUAGE_MODULES, *VISION_MODULES],
        "rank_pattern": dict.fromkeys(VISION_MODULES, VISION_RANK),
        "alpha_pattern": dict.fromkeys(VISION_MODULES, VISION_RANK),
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors(RANK, VISION_RANK, "cpu"), tmp_path / WEIGHTS_FILE)
    return tmp_path


def test_every_key_finds_its_module_without_any_weights(targets):
    """At the rank that real adapters have; on the meta device this takes no memory."""
    pairs = match_keys(tensors(64, 32, "meta"), targets)
    assert len(LANGUAGE_MODULES) == 252
    assert len(VISION_MODULES) == 28
    assert [pair.target.name for pair in pairs] == [*LANGUAGE_MODULES, *VISION_MODULES]
    for pair in pairs:
        size = (LANGUAGE_MODULES | VISION_MODULES)[pair.target.name]
        assert (pair.target.d_in, pair.target.d_out) == size
        assert pair.a.numel() // pair.a.shape[0] == pair.target.d_in
        assert pair.b.shape[0] == pair.target.d_out
    assert targets[PATCH_EMBED].kernel == KERNEL
    kinds = {pair.target.kind for pair in pairs}
    assert kinds == {RowKind.TEXT, RowKind.PATCH}
    assert {pair.target.layer for pair in pairs} == {None, *range(LAYERS)}


def test_the_whole_loader_accepts_it(targets, adapter):
    found = read_adapter(
        adapter, targets, torch.bfloat16, base_name="Qwen/Qwen3-VL-8B-Instruct"
    ).weights
    assert found.keys() == LANGUAGE_MODULES.keys() | VISION_MODULES.keys()
    assert targets_vision(found, targets)
    for name, (d_in, d_out) in (LANGUAGE_MODULES | VISION_MODULES).items():
        rank, scale = (VISION_RANK, 1.0) if name in VISION_MODULES else (RANK, 2.0)
        assert found[name].down.shape == (rank, d_in)
        assert found[name].up.shape == (rank, d_out)
        assert found[name].scale == scale


def test_one_module_short_is_refused_with_counts(targets, adapter):
    kept = load_file(adapter / WEIGHTS_FILE)
    lost = "model.visual.blocks.26.attn.proj"
    save_file({key: t for key, t in kept.items() if lost not in key}, adapter / WEIGHTS_FILE)
    with pytest.raises(FailedPrecondition) as caught:
        read_adapter(adapter, targets, torch.bfloat16)
    assert caught.value.reason == "INCOMPLETE_ADAPTER"
    assert caught.value.metadata == {"matched_modules": "279", "missing_modules": "1"}


def test_it_does_not_fit_a_smaller_model(targets, adapter):
    """Fewer layers: keys without a module. As many layers but narrower: other shapes."""
    with pytest.raises(FailedPrecondition) as caught:
        read_adapter(adapter, find_targets(tiny.tiny_base()), torch.bfloat16)
    assert caught.value.reason == "UNMATCHED_KEYS"
    # The tiny model has 3 of 36 layers, 2 of 27 blocks, and a patch embedding.
    assert caught.value.metadata == {"matched_modules": "24", "modules": "280", "keys": "560"}
    name = "model.language_model.layers.35.mlp.down_proj"
    narrower = targets | {name: Target(name, 9728, HIDDEN, RowKind.TEXT, layer=35)}
    with pytest.raises(InvalidArgument) as refused:
        read_adapter(adapter, narrower, torch.bfloat16)
    assert refused.value.reason == "ADAPTER_SHAPES"
    assert refused.value.metadata["module"] == name


def test_the_head_and_the_embedding_are_no_targets(targets):
    assert not [name for name in targets if "lm_head" in name or "embed_tokens" in name]
    kinds = [target.kind for target in targets.values()]
    # Four linears per block and the patch embedding; two per merger, of which there are 1 + 3.
    assert kinds.count(RowKind.TEXT) == 252
    assert kinds.count(RowKind.PATCH) == 4 * BLOCKS + 1
    assert kinds.count(RowKind.MERGED) == 8
