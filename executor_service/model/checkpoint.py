"""Loads a Qwen3-VL checkpoint from a directory, whole or not at all.

Knows files of a checkpoint and transformers; does not know adapters or gates.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

from executor_service.errors import NotLoadable

_DIGESTED = ("config.json", "preprocessor_config.json", "tokenizer.json")
_CHUNK_BYTES = 2**22
# The hub's cache keeps a snapshot of org/name under this folder.
_HUB_FOLDER = re.compile(r"models--([^/]+?)--([^/]+)")


def load_base(checkpoint: Path, *, device: str, dtype: torch.dtype) -> Any:
    """The frozen base model in evaluation mode.

    Args:
        checkpoint: Directory with `config.json` and safetensors.
        device: Torch device.
        dtype: Of all weights.

    Returns:
        A `Qwen3VLForConditionalGeneration`.

    Raises:
        NotLoadable: The directory holds no Qwen3-VL, or not all of its weights.
    """
    config = load_config(checkpoint)
    try:
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            checkpoint,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise NotLoadable(
            "the model's weights cannot be read; copy the checkpoint again"
        ) from error
    model, report = loaded
    # transformers fills what is missing with random numbers and carries on.
    problems = {kind: len(keys) for kind, keys in report.items() if keys}
    if problems:
        raise NotLoadable(f"the checkpoint does not fit its config: {problems}; copy it again")
    return model.to(device).eval().requires_grad_(False)


def load_config(checkpoint: Path) -> Any:
    """The checkpoint's config.

    Raises:
        NotLoadable: There is none, or it is not that of a Qwen3-VL.
    """
    # transformers takes a path that does not exist for a name on the hub.
    if not (checkpoint / "config.json").is_file():
        raise NotLoadable("the model directory holds no config.json; check the path")
    try:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise NotLoadable("the model's config.json cannot be read; copy it again") from error
    if config.model_type != "qwen3_vl":
        raise NotLoadable("the checkpoint is not a Qwen3-VL; only qwen3_vl is supported")
    return config


def base_digest(checkpoint: Path) -> str:
    """Digest of a checkpoint: config, preprocessing, tokenizer and all weights, names sorted."""
    names = {path.name for path in checkpoint.glob("*.safetensors")}
    names |= {name for name in _DIGESTED if (checkpoint / name).exists()}
    lines = "".join(f"{_file_digest(checkpoint / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()


def base_name(checkpoint: Path) -> str | None:
    """The hub name of a checkpoint, where its config or its folder tells it."""
    in_cache = _HUB_FOLDER.search(str(checkpoint))
    if in_cache:
        return f"{in_cache[1]}/{in_cache[2]}"
    config = json.loads((checkpoint / "config.json").read_text())
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and name else None


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
