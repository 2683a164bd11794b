"""A checkpoint, two experts and a handful of records on disk: real files, trained in a second."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen3VLForConditionalGeneration

from executor_service.model.experts import ExpertLocation, ExpertSet
from executor_service.model.features import FeatureRow
from executor_service.model.gated import GatedModel
from executor_service.model.loading import load_expert
from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from router_service.core import ExpertEntry, FeatureSpec
from tests.support.experts import write_expert
from training.conversations import Conversations, labelled_records
from training.data.calls import ToolCall
from training.data.records import Record, new_record, write_records
from training.feature_index import FeatureIndex
from training.miniature.checkpoint import build_config, build_tokenizer
from training.run_config import RunConfig

CORPUS = ["Click the left button", "Scroll down the grid", "[498, 385]", "user assistant"]
EXPERTS = ("clicker", "scroller")
# What a head of a few weights reads: the defaults are for one that has thousands of rows.
SMALL_FEATURES = {"vision_source": "tower", "vision_pooling": "mean"}


@dataclass(frozen=True)
class TinyRun:
    """Paths of everything that a run needs.

    Args:
        base: The checkpoint.
        experts: Folder of experts.
        records: JSONL of records of all of them.
    """

    base: Path
    experts: Path
    records: Path

    def config(self, out: Path, **changes: Any) -> RunConfig:
        """A short run with one record a forward."""
        values: dict[str, Any] = {
            "model": self.base,
            "records": self.records,
            "experts_root": self.experts,
            "out": out,
            "steps": 4,
            "batch_rows": 2,
            "save_every": 1,
            "router": {"width": 16, "dropout": 0.1, **SMALL_FEATURES},
            "rates": {"router": 1e-2, "joint_expert": 1e-3},
        }
        return RunConfig(**{**values, **changes})


def write_tiny_run(root: Path) -> TinyRun:
    """Writes all of it."""
    base = write_checkpoint(root / "base")
    for at, name in enumerate(EXPERTS):
        system = f"You are the {name}."
        write_expert(base, root / "experts" / name, rank=2 + 2 * at, seed=at, system_prompt=system)
    write_records(root / "records.jsonl", records(root))
    return TinyRun(base, root / "experts", root / "records.jsonl")


def write_features(run: TinyRun, out: Path, **vision: str) -> Path:
    """A feature cache of the run's records, extracted here and not over the RPC.

    Args:
        vision: `vision_source` and `vision_pooling`, else those of the run's own configuration.
    """
    model = GatedModel.load(run.base, device="cpu", dtype=torch.float32)
    experts = load_experts(model, {name: run.experts / name for name in EXPERTS})
    spec = model.feature_spec(text_layer=2, **vision)
    rows = Conversations(
        labelled_records(run.records, EXPERTS),
        run.records.parent,
        ScreenReader(run.base),
        PromptBuilder(model.tokenizer),
        dict.fromkeys(EXPERTS),
    )
    read = [rows[at] for at in range(len(rows))]
    seen = model.encode_vision([row.screen for row in read], None)
    asked = [
        FeatureRow(row.instruction.feature_ids, row.instruction.feature_span, vision)
        for row, vision in zip(read, seen, strict=True)
    ]
    found = model.features(asked, spec)
    out.mkdir(parents=True)
    shard = {
        "text": torch.stack([features.text for features in found]),
        "vision": torch.stack([features.vision for features in found]),
        "label": torch.tensor([row.expert for row in read]),
        "image": torch.arange(len(read)) // 2,
        "source": torch.zeros(len(read), dtype=torch.int64),
    }
    save_file(shard, out / "shard-00000.safetensors")
    index = FeatureIndex(
        FeatureSpec(**vars(spec)),
        experts.digest,
        tuple(ExpertEntry(made.name, made.digest, 5) for made in experts.identities),
        hashlib.sha256(run.records.read_bytes()).hexdigest(),
        ("synthetic",),
        0,
        {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in out.glob("*.safetensors")
        },
    )
    stated = dataclasses.asdict(index) | {"feature_spec_digest": index.feature_spec.digest}
    (out / "features.json").write_text(json.dumps(stated))
    return out


def load_experts(model: GatedModel, directories: Mapping[str, Path]) -> ExpertSet:
    """Experts of a model, loaded and probed."""
    return model.expert_set(
        load_expert(model, ExpertLocation(name, path)) for name, path in directories.items()
    )


def write_checkpoint(out: Path) -> Path:
    """The miniature's architecture with two layers, and screens of four to nine tokens."""
    tokenizer = build_tokenizer(CORPUS * 20, merges=60)
    tokenizer.save_pretrained(out)
    config = build_config(tokenizer)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = 2, 32, 48
    vision.depth, vision.hidden_size, vision.intermediate_size = 2, 32, 48
    vision.out_hidden_size, vision.deepstack_visual_indexes = 32, [0]
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.12)
    model.save_pretrained(out)
    size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 9 * 32 * 32}
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor))
    return out


def records(root: Path, images: int = 3) -> Sequence[Record]:
    """Two records an image, and as many images for each expert, of two sizes."""
    rng = random.Random(0)
    (root / "images").mkdir(parents=True, exist_ok=True)
    made = []
    for at in range(2 * images):
        name = EXPERTS[at % 2]
        shown = Image.new("RGB", (64, 64) if at % 2 else (96, 64), (40 * at, 90, 120))
        shown.paste((255, 255, 255), (rng.randrange(40), 8, 60, 40))
        shown.save(root / "images" / f"{at}.png")
        for number in range(2):
            call = (
                ToolCall.computer_use("scroll", coordinate=[500, 500], pixels=300 * (1 + number))
                if at % 2
                else ToolCall.computer_use("left_click", coordinate=[rng.randrange(1000), 7])
            )
            prompt = "Scroll down the grid" if at % 2 else "Click the left button"
            record = new_record(
                f"{at}-{number}", f"images/{at}.png", prompt, [call], {"task_type": name}
            )
            made.append(dataclasses.replace(record, adapter=name))
    return made
