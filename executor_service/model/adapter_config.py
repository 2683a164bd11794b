"""Reads PEFT's `adapter_config.json`: which ranks and scalings it declares, and what is refused.

Knows PEFT's file format; does not know tensors or the model. Every field is either used, known to
change nothing here, or refused: none is ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from service_chassis.errors import InvalidArgument

Value = TypeVar("Value")
# Ends of module names, and what holds there; the first that fits wins.
Patterns = tuple[tuple[re.Pattern[str], Value], ...]

MAX_CONFIG_BYTES = 2**20
MAX_RANK = 1024
_MAX_PATTERNS = 4096
_MAX_PATTERN_CHARACTERS = 512
_MAX_QUANTIFIERS = 3
# (q_proj|k_proj|…) has as many as names; two of them in a row have the product.
_MAX_WAYS = 1024
_ANY_LAYER = re.compile(r".*?\.[^.]*\.(?P<layer>\d+)\.")

_USED = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
}
# These say how the adapter was trained or stored; a forward in inference is the same without them.
_HARMLESS = {
    "peft_version",
    "task_type",
    "inference_mode",
    "auto_mapping",
    "revision",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "runtime_config",
    "ensure_weight_tying",
}
# They start from the base as it is. PiSSA, OLoRA, CorDA, LoftQ and their like change the base too,
# so that the adapter alone is worth nothing.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_REFUSED = {
    "use_dora": ("DORA", "DoRA adapters are not supported; train plain LoRA."),
    "lora_bias": ("LORA_BIAS", "Adapters with biases are not supported; train without."),
    "modules_to_save": (
        "MODULES_TO_SAVE",
        "Adapters with whole modules are not supported; train without modules_to_save.",
    ),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter declares about its modules. Names are those of the model it was made for."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Patterns[int]
    alpha_pattern: Patterns[float]
    target_modules: tuple[str, ...]
    exclude_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[re.Pattern[str], ...]
    base_name: str | None

    def rank_of(self, module: str) -> int:
        """The declared rank of a module."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Its scaling: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def names(self, module: str) -> bool:
        """Whether the config asks for this module, by PEFT's rule for lists of names.

        False if it names modules by a regular expression, which is not evaluated.
        """
        if _ends_with_any(module, self.exclude_modules):
            return False
        if not _ends_with_any(module, self.target_modules):
            return False
        if not self.layers_to_transform:
            return True
        # The first numbered part of the name is the layer.
        for pattern in self.layers_pattern or (_ANY_LAYER,):
            found = pattern.match(module)
            if found:
                return int(found.group("layer")) in self.layers_to_transform
        return False


def parse_config(data: bytes) -> AdapterConfig:
    """Parses and checks `adapter_config.json`.

    Args:
        data: The file.

    Raises:
        InvalidArgument: BAD_ADAPTER_CONFIG, or the reason of the feature that is not supported
            (DORA, LORA_BIAS, MODULES_TO_SAVE, BASE_CHANGING_INIT, UNSUPPORTED_FIELD,
            RANK_TOO_LARGE).
    """
    config = _parse_json(data)
    _refuse_unsupported(config)
    by_expression = any(
        isinstance(config.get(field), str) for field in ("target_modules", "exclude_modules")
    )
    return AdapterConfig(
        rank=_rank(config.get("r"), "r"),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        rslora=_flag(config, "use_rslora"),
        rank_pattern=_patterns(config, "rank_pattern", _rank),
        alpha_pattern=_patterns(config, "alpha_pattern", _alpha),
        target_modules=() if by_expression else _names(config, "target_modules"),
        exclude_modules=() if by_expression else _names(config, "exclude_modules"),
        layers_to_transform=_layers(config),
        layers_pattern=_layers_pattern(config),
        base_name=_optional_text(config, "base_model_name_or_path"),
    )


def bad_config(field: str) -> InvalidArgument:
    """The error for a field that cannot be what it says."""
    return InvalidArgument(
        "BAD_ADAPTER_CONFIG",
        "adapter_config.json is not as PEFT writes it; save the adapter again.",
        field=field,
    )


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise bad_config("(file)") from error
    if not isinstance(config, dict):
        raise bad_config("(file)")
    return config


def _refuse_unsupported(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise bad_config("peft_type")
    for name, (reason, message) in _REFUSED.items():
        if config.get(name):
            raise InvalidArgument(reason, message, field=name)
    if config.get("bias", "none") != "none":
        raise InvalidArgument(*_REFUSED["lora_bias"], field="bias")
    init = config.get("init_lora_weights", True)
    if not any(init is plain or init == plain for plain in _PLAIN_INITIALISATIONS):
        raise InvalidArgument(
            "BASE_CHANGING_INIT",
            "This initialisation changes the base; convert the adapter to plain LoRA when saving.",
            field="init_lora_weights",
        )
    for name, value in config.items():
        # A feature that is off is false, empty or null in every version of PEFT.
        if value and name not in _USED | _HARMLESS:
            known = re.fullmatch(r"[a-z_]{1,64}", name)
            raise InvalidArgument(
                "UNSUPPORTED_FIELD",
                "adapter_config.json uses a feature that is not supported; train plain LoRA.",
                field=name if known else "(unnamed)",
            )


def _by_pattern(patterns: Patterns[Value], module: str, default: Value) -> Value:
    """The value of the first pattern that the module's name ends with, as PEFT looks it up."""
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _ends_with_any(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _rank(value: object, field: str) -> int:
    if type(value) is not int or value < 1:
        raise bad_config(field)
    if value > MAX_RANK:
        raise InvalidArgument(
            "RANK_TOO_LARGE",
            "The adapter's rank is too large; train with at most max_rank.",
            field=field,
            max_rank=MAX_RANK,
        )
    return value


def _alpha(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_config(field)
    # json reads NaN and Infinity; a scaling of 0 would switch the adapter off in silence.
    if not math.isfinite(value) or value == 0:
        raise bad_config(field)
    return float(value)


def _flag(config: dict[str, Any], field: str) -> bool:
    value = config.get(field, False)
    if not isinstance(value, bool):
        raise bad_config(field)
    return value


def _patterns(
    config: dict[str, Any], field: str, check: Callable[[object, str], Value]
) -> Patterns[Value]:
    table = config.get(field) or {}
    if not isinstance(table, dict) or len(table) > _MAX_PATTERNS:
        raise bad_config(field)
    return tuple(
        (_compile(rf"(.*\.)?({_safe(pattern, field)})$", field), check(value, field))
        for pattern, value in table.items()
    )


def _compile(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise bad_config(field) from error


def _safe(pattern: str, field: str) -> str:
    """Refuses what could run for ages: PEFT's patterns are expressions from a stranger's file."""
    quantifiers = re.findall(r"[*+?{]", pattern)
    nested = re.search(r"\)[*+?{]", pattern)
    if (
        len(pattern) > _MAX_PATTERN_CHARACTERS
        or len(quantifiers) > _MAX_QUANTIFIERS
        or nested
        or _ways(pattern) > _MAX_WAYS
    ):
        raise bad_config(field)
    return pattern


def _ways(pattern: str) -> int:
    """At most so many ways lead through the alternatives of a pattern, one after another."""
    ways, choices = 1, [1]
    for character in pattern:
        if character == "(":
            choices.append(1)
        elif character == "|":
            choices[-1] += 1
        elif character == ")" and len(choices) > 1:
            ways *= choices.pop()
    return ways * math.prod(choices)


def _names(config: dict[str, Any], field: str) -> tuple[str, ...]:
    names = config.get(field) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_config(field)
    return tuple(names)


def _layers(config: dict[str, Any]) -> tuple[int, ...]:
    layers = config.get("layers_to_transform")
    if layers is None:
        return ()
    layers = layers if isinstance(layers, list) else [layers]
    if not all(type(layer) is int for layer in layers):
        raise bad_config("layers_to_transform")
    return tuple(layers)


def _layers_pattern(config: dict[str, Any]) -> tuple[re.Pattern[str], ...]:
    patterns = config.get("layers_pattern") or []
    patterns = patterns if isinstance(patterns, list) else [patterns]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise bad_config("layers_pattern")
    return tuple(
        _compile(
            rf"(?:^|.*?\.){_safe(pattern, 'layers_pattern')}\.(?P<layer>\d+)\.", "layers_pattern"
        )
        for pattern in patterns
    )


def _optional_text(config: dict[str, Any], field: str) -> str | None:
    value = config.get(field)
    return value if isinstance(value, str) and value else None
