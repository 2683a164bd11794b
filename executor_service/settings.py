"""Settings of the executor; the only place that reads its environment.

Knows names, defaults and paths; does not know what is done with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from service_chassis.settings import FieldError, ServerSettings

EMBEDDED = Path(__file__).resolve().parents[1] / "miniature"
_MODULE_PREFIX = "LORA_"
# GetServerInfo tells limits as uint32.
_LARGEST = 2**32 - 1


class ExecutorSettings(ServerSettings):
    """What the executor needs to know beyond what every server has."""

    model_config = SettingsConfigDict(env_prefix="MOLORA_EXECUTOR_")

    port: int = Field(default=50052, ge=0, le=65535)
    """gRPC port; 0 takes any free one and prints it."""
    metrics_port: int = Field(default=9465, ge=0, le=65535)
    """Port of the Prometheus metrics; 0 takes any free one and prints it."""
    model: Path = EMBEDDED / "base"
    """Checkpoint directory of the base model; unset: the embedded miniature."""
    experts_root: Path | None = None
    """Directory with one expert per directory; unset: the miniature's, with its model."""
    lora_modules: dict[str, Path] = Field(default_factory=dict)
    """Further experts as name=directory; LORA_<NAME> in the environment adds more."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives; auto: cuda where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the model computes in; auto: float32 on cpu, bfloat16 on cuda."""
    decode: Literal["auto", "eager", "cuda_graph"] = "auto"
    """How answers' next tokens run; auto: eager, also on cuda, as graphs are not tried there yet.
    With cuda_graph, steps with gates per layer are still eager."""
    feature_layer: int = Field(default=2, ge=1)
    """Decoder layers the text passes before its features are taken."""
    text_pooling: Literal["mean", "last", "first"] = "mean"
    """How the instruction's tokens become one vector."""
    vision_source: Literal["tower", "deepstack", "levels", "fused"] = "levels"
    """Which vision features the router gets."""
    vision_pooling: Literal["mean", "statistics"] = "statistics"
    """How the image tokens become one vector: their mean, or with it spread, maximum, minimum."""
    queue_length: int = Field(default=64, ge=1, le=_LARGEST)
    """Requests that may wait; more are refused with a delay to retry after."""
    slots: int = Field(default=8, ge=1, le=_LARGEST)
    """Answers that are generated at once; the next ones wait."""
    slot_tokens: int | None = Field(default=None, ge=2, le=_LARGEST)
    """Longest prompt and answer together; memory for it is taken at start, for every slot. Unset:
    max_prompt_tokens and max_new_tokens together, or the model's own limit where that is lower."""
    prefill_chunk_tokens: int = Field(default=512, ge=1, le=_LARGEST)
    """Prompt tokens that run at once: the longest that running answers wait for a prompt."""
    features_batch: int = Field(default=8, ge=1)
    """Extractions that run together at most."""
    prefix_bytes: int = Field(default=256 * 2**20, ge=0, le=_LARGEST)
    """What the keys and values of kept system prompts may take, in bytes; 0 keeps none."""
    max_prompt_tokens: int = Field(default=8192, ge=1, le=_LARGEST)
    """Longest prompt, image tokens included; the model's own limit may be lower."""
    max_new_tokens: int = Field(default=512, ge=1, le=_LARGEST)
    """Longest answer; also that of a request that asks for none."""
    context_bytes: int = Field(default=512 * 2**20, ge=1, le=_LARGEST)
    """What all held screens together may keep in memory, in bytes."""
    context_ttl_s: int = Field(default=300, ge=1, le=_LARGEST)
    """How long a screen is held, in seconds."""
    max_screen_bytes: int = Field(default=8 * 2**20, ge=1, le=_LARGEST)
    """Largest screen file, in bytes."""
    max_screen_pixels: int = Field(default=16_000_000, ge=1, le=_LARGEST)
    """Largest screen, in pixels."""
    system_prompt: str = ""
    """System prompt where neither the request nor its expert has one; empty: none."""

    @model_validator(mode="after")
    def _check_message_fits_screen(self) -> ExecutorSettings:
        if self.max_screen_bytes >= self.max_message_bytes:
            raise FieldError(
                "max_screen_bytes",
                f"{self.max_screen_bytes} does not fit into a message of {self.max_message_bytes}",
                "raise max_message_bytes above it",
            )
        return self

    @property
    def effective_experts_root(self) -> Path | None:
        """`experts_root`, or the miniature's experts where the model is the miniature."""
        if self.experts_root is None and self.model.resolve() == EMBEDDED / "base":
            return EMBEDDED / "experts"
        return self.experts_root


def lora_environment() -> Mapping[str, str]:
    """The variables that name experts: LORA_<NAME>=directory."""
    return {key: value for key, value in os.environ.items() if key.startswith(_MODULE_PREFIX)}
