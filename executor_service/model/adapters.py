"""Reads a PEFT LoRA adapter and matches it, key by key, to a model's modules.

Knows the adapter's files and the names and shapes of targets; does not know gates, sets of experts
or the model's weights: targets from the meta device are enough.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from executor_service.model.adapter_config import MAX_CONFIG_BYTES, AdapterConfig, parse_config
from executor_service.model.mixture import LoraWeights
from executor_service.model.targets import LANGUAGE, VISION, Target
from executor_service.model.tensor_file import MAX_FILE_BYTES, parse_tensors, read_private
from service_chassis.errors import DataLoss, FailedPrecondition, InvalidArgument

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pkl")

_PREFIX = "base_model.model."
# How transformers named the same modules over time, and what they are called now. The vision tower
# has `blocks`, so `layers` can only be the language model's.
_RENAMED = (
    ("model.layers.", "model.language_model.layers."),
    ("layers.", "model.language_model.layers."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("visual.", "model.visual."),
)
_LORA_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_WHOLE_HEADS = re.compile(r"(^|\.)(lm_head|embed_tokens)\.")


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its content's digest and its weights by module name."""

    digest: str
    weights: Mapping[str, LoraWeights]


@dataclass(frozen=True)
class _Pair:
    """The tensors of one module, which the adapter calls `file_name`."""

    file_name: str
    target: Target
    a: torch.Tensor
    b: torch.Tensor


def read_adapter(
    directory: Path,
    targets: Mapping[str, Target],
    dtype: torch.dtype,
    *,
    base_name: str | None = None,
    allow_no_op: bool = False,
) -> Adapter:
    """Reads, checks and matches an adapter.

    Args:
        directory: Holds `adapter_config.json` and `adapter_model.safetensors`.
        targets: The model's modules, by name.
        dtype: The model's, to which the weights are converted.
        base_name: The hub name of the model, if it has one.
        allow_no_op: Accept an adapter that changes nothing.

    Returns:
        Weights in CPU memory.

    Raises:
        InvalidArgument: An unsupported file or feature, or wrong shapes.
        DataLoss: Damaged bytes, or weights that are not finite.
        FailedPrecondition: It does not fit this base, in part or at all (with counts), or it
            changes nothing.
    """
    _refuse_pickles(directory)
    config_bytes = read_private(directory / CONFIG_FILE, MAX_CONFIG_BYTES)
    data = read_private(directory / WEIGHTS_FILE, MAX_FILE_BYTES)
    config = parse_config(config_bytes)
    _check_base(config.base_name, base_name)
    pairs = match_keys(parse_tensors(data), targets)
    _check_complete(config, pairs, targets)
    _check_shapes(config, pairs)
    weights = {pair.target.name: _weights(config, pair, dtype) for pair in pairs}
    if not allow_no_op and not any(_has_effect(pair) for pair in weights.values()):
        raise FailedPrecondition(
            "NO_OP_ADAPTER", "The adapter changes nothing: all its B are zero. Train it first."
        )
    return Adapter(adapter_digest(config_bytes, data), weights)


def adapter_digest(config: bytes, weights: bytes) -> str:
    """Digest of an adapter's content: sha256 over the sha256 lines of its two files."""
    files = ((config, CONFIG_FILE), (weights, WEIGHTS_FILE))
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for data, name in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def match_keys(tensors: Mapping[str, torch.Tensor], targets: Mapping[str, Target]) -> list[_Pair]:
    """Pairs every tensor with the module it belongs to.

    Args:
        tensors: As the file names them.
        targets: The model's modules, by name.

    Returns:
        One pair per module, in the file's order.

    Raises:
        InvalidArgument: A key belongs to a feature that is not supported.
        FailedPrecondition: UNMATCHED_KEYS, AMBIGUOUS_KEYS or UNPAIRED_KEYS, with counts.
    """
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        _refuse_key(key)
        found = _LORA_KEY.fullmatch(key)
        name = found["module"] if found else key
        sides.setdefault(name.removeprefix(_PREFIX), {})[found["side"] if found else ""] = tensor
    names = {name: _canonical(name, targets) for name in sides}
    matched = [name for name, target in names.items() if target and "" not in sides[name]]
    counts = {"matched_modules": len(matched), "modules": len(names), "keys": len(tensors)}
    if len(matched) < len(names) or not names:
        raise FailedPrecondition(
            "UNMATCHED_KEYS",
            "Adapter keys match no module of this model; load an adapter trained on this base.",
            **counts,
        )
    if len(set(names.values())) < len(names):
        raise FailedPrecondition(
            "AMBIGUOUS_KEYS",
            "Two adapter keys name the same module; save the adapter again.",
            **counts,
        )
    if any(set(sides[name]) != {"A", "B"} for name in matched):
        raise FailedPrecondition(
            "UNPAIRED_KEYS", "A module has only one of A and B; save the adapter again.", **counts
        )
    return [
        _Pair(name, targets[names[name] or ""], sides[name]["A"], sides[name]["B"])
        for name in matched
    ]


def _refuse_pickles(directory: Path) -> None:
    pickled = any((directory / name).exists() for name in PICKLE_FILES)
    if pickled and not (directory / WEIGHTS_FILE).exists():
        raise InvalidArgument(
            "PICKLED_ADAPTER", "The weights are pickled, which is never read; save as safetensors."
        )


def _check_base(declared: str | None, ours: str | None) -> None:
    """Refuses another base where both sides name theirs; a path names nothing."""
    hub_name = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
    if not (declared and ours and hub_name.fullmatch(declared) and hub_name.fullmatch(ours)):
        return
    if declared.lower() != ours.lower():
        raise FailedPrecondition(
            "OTHER_BASE", "The adapter was trained on another base; serve that one or train anew."
        )


def _refuse_key(key: str) -> None:
    if "lora_magnitude_vector" in key:
        raise InvalidArgument("DORA", "DoRA adapters are not supported; train plain LoRA.")
    if "lora_embedding" in key or _WHOLE_HEADS.search(key):
        raise InvalidArgument(
            "EMBEDDING_OR_HEAD",
            "Adapters of token embedding or output head are not supported; train without.",
        )
    if key.endswith(".bias"):
        raise InvalidArgument("LORA_BIAS", "Adapters with biases are not supported; train without.")
    if "modules_to_save" in key:
        raise InvalidArgument(
            "MODULES_TO_SAVE", "Adapters with whole modules are not supported; train without."
        )


def _canonical(name: str, targets: Mapping[str, Target]) -> str | None:
    if name in targets:
        return name
    for old, new in _RENAMED:
        renamed = new + name.removeprefix(old)
        if name.startswith(old) and renamed in targets:
            return renamed
    return None


def _check_complete(
    config: AdapterConfig, pairs: Iterable[_Pair], targets: Mapping[str, Target]
) -> None:
    """Every module that the config names must be there: PEFT would fill it with a no-op."""
    present = {pair.target.name for pair in pairs}
    spelled = {head: head for head in (LANGUAGE, VISION)}
    for pair in pairs:
        head = _head(pair.target.name)
        spelled[head] = pair.file_name.removesuffix(pair.target.name.removeprefix(head))
    missing = [
        name
        for name in targets
        if name not in present
        and config.names(spelled[_head(name)] + name.removeprefix(_head(name)))
    ]
    if missing:
        raise FailedPrecondition(
            "INCOMPLETE_ADAPTER",
            "adapter_config.json names modules without weights; save the adapter again.",
            matched_modules=len(present),
            missing_modules=len(missing),
        )


def _head(name: str) -> str:
    return LANGUAGE if name.startswith(LANGUAGE) else VISION


def _check_shapes(config: AdapterConfig, pairs: Iterable[_Pair]) -> None:
    for pair in pairs:
        target, rank = pair.target, config.rank_of(pair.file_name)
        a_shape: tuple[int, ...] = (rank, *(target.kernel or (target.d_in,)))
        b_shape: tuple[int, ...] = (target.d_out, rank)
        if target.kernel:
            b_shape += (1,) * (len(target.kernel) - 1)
        if tuple(pair.a.shape) != a_shape or tuple(pair.b.shape) != b_shape:
            raise InvalidArgument(
                "ADAPTER_SHAPES",
                "A module's weights do not fit base and rank; load an adapter for this base.",
                module=target.name,
                expected_a=a_shape,
                expected_b=b_shape,
                a=tuple(pair.a.shape),
                b=tuple(pair.b.shape),
            )


def _weights(config: AdapterConfig, pair: _Pair, dtype: torch.dtype) -> LoraWeights:
    if not (torch.isfinite(pair.a).all() and torch.isfinite(pair.b).all()):
        raise DataLoss(
            "WEIGHTS_NOT_FINITE", "The adapter holds NaN or infinite weights; train it again."
        )
    down = pair.a.flatten(1).to(dtype).contiguous()
    up = pair.b.flatten(1).t().to(dtype).contiguous()
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise FailedPrecondition(
            "ADAPTER_OVERFLOW",
            "The weights do not fit the model's number format; serve in a wider one.",
        )
    return LoraWeights(down, up, config.scale_of(pair.file_name))


def _has_effect(pair: LoraWeights) -> bool:
    return bool(pair.down.any()) and bool(pair.up.any())
