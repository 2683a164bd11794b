"""What can be chosen of a run that trains an expert, or the head by the answers.

Knows names, defaults and limits; `run_file.py` knows where values come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.run_file import Run

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
    router: float | None = Field(default=None, gt=0)
    """Of the head, in stages 2 and 3; unset: 3e-5, and 3e-4 of one that begins from nothing."""
    joint_expert: float = Field(default=1e-5, gt=0)
    """Of the experts in stage 3."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which a rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of all gradients together."""


class RunConfig(Run):
    """A run of an expert, or of stage 2 or 3. Stage 1 reads features only: `Stage1Run`."""

    model: Path
    """Checkpoint directory of the base model."""
    records: Path
    """JSONL file of labelled records."""
    images_root: Path | None = None
    """Folder that image paths are relative to; unset: the file's."""
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

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.batch_rows % self.rows_per_forward:
            raise ValueError(
                f"batch_rows {self.batch_rows} is no multiple of rows_per_forward "
                f"{self.rows_per_forward}; give one that is"
            )
        if self.weights.kl and not self.start:
            raise ValueError(
                "weights.kl pulls towards the head that is started from; name start, or leave it "
                "out"
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

    @property
    def router_rate(self) -> float:
        """Learning rate of the head.

        AdamW's steps are as long where hardly anything is left to learn, and a head that is started
        from then forgets what these records do not show.
        """
        return self.rates.router or (3e-5 if self.start else 3e-4)

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
