"""The one configuration of a training run: file, environment and flags, checked once and saved.

Knows what can be chosen and how a choice is written down; trains nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

RUN_FILE = "run.yaml"
INPUTS_FILE = "inputs.json"
_CONCERN = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Lora(BaseModel):
    """A new expert. Alpha is twice the rank, and the tower has half of it."""

    model_config = _CONCERN

    name: str | None = None
    """The expert's name: the adapter that its records name."""
    label: int | None = None
    """Integer that the expert's set calls it by, if it has such labels."""
    rank: int = Field(default=16, ge=2, multiple_of=2)
    """r of the language model's linears."""
    system_prompt: str | None = None
    """System prompt of every record; unset: the one that the records carry."""


class Router(BaseModel):
    """The router's head and what it reads. Unset values are those of the head that is started from.

    Without one they are width 128, dropout 0.1, layer 2, `mean`, `levels` and `statistics`.
    """

    model_config = _CONCERN

    width: int | None = Field(default=None, ge=1)
    """Of each projection and of the hidden layer."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability that a hidden unit is dropped while training."""
    text_layer: int | None = Field(default=None, ge=1)
    """Hook: text features are the hidden states behind this many decoder layers."""
    text_pooling: Literal["mean", "last", "first"] | None = None
    """Which of the instruction's tokens count."""
    vision_source: Literal["tower", "deepstack", "levels", "fused"] | None = None
    """What is pooled of the screen."""
    vision_pooling: Literal["mean", "statistics"] | None = None
    """How the image tokens become one vector."""
    per_layer: bool = False
    """Gates of its own for every decoder layer, as MoLE has them."""


class Gates(BaseModel):
    """How logits become gates while training."""

    model_config = _CONCERN

    estimator: Literal["soft", "straight_through", "gumbel"] = "soft"
    """`soft` applies probabilities; the others apply the best k and learn as if they had not."""
    top_k: int = Field(default=1, ge=1)
    """Experts that keep a gate; not used by `soft`."""
    temperature_start: float = Field(default=1.0, gt=0)
    """Temperature of the first step."""
    temperature_end: float = Field(default=1.0, gt=0)
    """Temperature of the last step."""
    temperature_shape: Literal["linear", "cosine", "exponential"] = "exponential"
    """How it gets from one to the other."""


class Weights(BaseModel):
    """What is added to the language model's cross-entropy, in nats per unit of each penalty."""

    model_config = _CONCERN

    entropy: float = Field(default=0.01, ge=0)
    """Of the gates' entropy, which is 1 for uniform gates."""
    kl: float = Field(default=0.0, ge=0)
    """Of the divergence from the probabilities of the head that was started from."""
    balance: float = Field(default=0.1, ge=0)
    """Of the distance of the gates' marginals from the labels', while they are collapsing."""
    balance_below: float = Field(default=0.5, ge=0, le=1)
    """Marginals collapse where an expert gets less than this part of its share of the labels."""


class Guard(BaseModel):
    """When a run is stopped because its gates have collapsed."""

    model_config = _CONCERN

    collapse_below: float = Field(default=0.1, ge=0, le=1)
    """An expert gets less than this part of its share of the labels; 0 never stops."""
    patience_steps: int = Field(default=20, ge=1)
    """For so many steps in a row."""


class Rates(BaseModel):
    """Learning rates of AdamW after warming up."""

    model_config = _CONCERN

    expert: float = Field(default=2e-4, gt=0)
    """Of an expert that is trained alone."""
    router: float = Field(default=3e-4, gt=0)
    """Of the head, in stages 2 and 3."""
    joint_expert: float = Field(default=1e-5, gt=0)
    """Of the experts in stage 3."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which a rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""


class RunConfig(BaseSettings):
    """A training run. Saved beside its results, it gives the same run again."""

    model_config = SettingsConfigDict(
        env_prefix="MOLORA_TRAIN_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        nested_model_default_partial_update=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    model: Path
    """Checkpoint directory of the base model."""
    records: Path
    """JSONL file of labelled records."""
    images_root: Path | None = None
    """Folder that image paths are relative to; unset: the file's."""
    out: Path
    """Folder of the run; a run that was stopped goes on there."""
    experts_root: Path | None = None
    """Folder with one expert per folder."""
    lora_modules: dict[str, Path] = Field(default_factory=dict)
    """Experts by name: NAME=DIRECTORY. LORA_<NAME> in the environment says the same."""
    adapters: tuple[str, ...] = ()
    """Names of the experts to mix; unset: all that were found."""
    start: Path | None = None
    """Router bundle, or folder of an earlier run, whose head is started from."""
    features: Path | None = None
    """Feature cache on which the trained head is calibrated; unset: no bundle is written."""
    known: Path | None = None
    """Feature cache of the looks that the router is to know; unset: those of features."""
    steps: int = Field(default=1000, ge=1)
    """Optimiser steps."""
    batch_rows: int = Field(default=8, ge=1)
    """Records in a step, over all processes."""
    rows_per_forward: int = Field(default=1, ge=1)
    """Records in one forward of one process."""
    save_every: int = Field(default=100, ge=1)
    """Steps between states that a stopped run goes on from."""
    seed: int = Field(default=0, ge=0)
    """Of weights, order, dropout and noise."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base model's weights."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Of the forward; what is trained stays float32."""
    gradient_checkpointing: bool = False
    """Recompute layers during backward, for less memory."""
    lora: Lora = Lora()
    router: Router = Router()
    gates: Gates = Gates()
    weights: Weights = Weights()
    guard: Guard = Guard()
    rates: Rates = Rates()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over what is given in code, which is the file; flags come before both."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.batch_rows % self.rows_per_forward:
            raise ValueError(
                f"batch_rows {self.batch_rows} is no multiple of rows_per_forward "
                f"{self.rows_per_forward}; give one that is"
            )
        if self.known and not self.features:
            raise ValueError(
                "known is of a bundle, and without features none is written; name both"
            )
        return self

    @property
    def images(self) -> Path:
        """Folder that image paths are relative to."""
        return self.images_root or self.records.parent

    def accumulation(self, processes: int) -> int:
        """Forwards of each process in one step.

        Args:
            processes: How many run together.

        Raises:
            ValueError: The step's records cannot be shared out evenly.
        """
        forwards, rest = divmod(self.batch_rows, self.rows_per_forward * processes)
        if rest:
            raise ValueError(
                f"batch_rows {self.batch_rows} is no multiple of {processes} processes with "
                f"{self.rows_per_forward} rows_per_forward; give one that is"
            )
        return forwards

    def written(self) -> dict[str, Any]:
        """Everything that was chosen, as YAML can hold it."""
        return self.model_dump(mode="json")

    def save(self) -> None:
        """Writes `run.yaml` into the run's folder, whole or not at all.

        Raises:
            ValueError: The folder holds a run with another configuration.
        """
        path = self.out / RUN_FILE
        if path.exists():
            held = yaml.safe_load(path.read_text(encoding="utf-8"))
            if changed := sorted(_different(held, self.written())):
                raise ValueError(
                    f"{self.out} holds another run, with other {', '.join(changed)}; "
                    "give another folder, or the same configuration to go on"
                )
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump(self.written(), sort_keys=False))

    def pin(self, inputs: Mapping[str, str]) -> None:
        """Writes down what the run was given, or checks that it is given the same again.

        Args:
            inputs: Digests by name; a path says nothing of what is there.

        Raises:
            ValueError: The run began with something else.
        """
        path = self.out / INPUTS_FILE
        if not path.exists():
            write_whole(path, json.dumps(dict(inputs), indent=2, sort_keys=True) + "\n")
            return
        held = json.loads(path.read_text(encoding="utf-8"))
        if changed := sorted(_different(held, dict(inputs))):
            raise ValueError(
                f"{', '.join(changed)} changed since the run in {self.out} began; "
                "give another folder, or what it began with"
            )


def read_run_config(argv: Sequence[str], prog: str) -> RunConfig:
    """A run's configuration: flags over environment over file over defaults.

    Every field has a flag: `--batch-rows`, and `--gates.top-k` for one of a part; and a variable:
    MOLORA_TRAIN_BATCH_ROWS and MOLORA_TRAIN_GATES__TOP_K.

    Args:
        argv: Flags; `--config FILE` names a YAML file, such as the `run.yaml` of another run.
        prog: The command as its user types it.

    Raises:
        ValueError: A value is wrong or missing; one line a problem.
        SystemExit: 2 for a flag that does not exist, 0 after `--help`.
    """
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    own, flags = parser.parse_known_args(argv)
    values = read_mapping(own.config) if own.config else {}
    try:
        # Unpacked, since mypy reads the fields only and knows no argument of the source of flags.
        flagged: dict[str, Any] = {
            "_cli_parse_args": flags,
            "_cli_prog_name": f"{prog} [--config FILE]",
        }
        return RunConfig(**values, **flagged)
    except ValidationError as error:
        raise ValueError("\n".join(explained(error))) from None


def digest_of(path: Path) -> str:
    """sha256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears when it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file of names and values says.

    Raises:
        ValueError: It is no such file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no YAML: give a run's configuration") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no mapping: write `name: value` lines")
    return content


def explained(error: ValidationError) -> list[str]:
    """A line a problem: where it is, and what is wrong there."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        lines.append(f"{where}: {problem['msg']}")
    return lines


def _different(held: Any, now: Any, name: str = "") -> list[str]:
    """Names of the values in which two written configurations differ."""
    if not (isinstance(held, dict) and isinstance(now, dict)):
        return [] if held == now else [name]
    return [
        changed
        for key in {**held, **now}
        for changed in _different(held.get(key), now.get(key), f"{name}.{key}" if name else key)
    ]
