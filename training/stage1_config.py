"""What can be chosen of stage 1: how a head is trained, and on which features.

Knows names, defaults and limits; `run_file.py` knows where values come from.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.run_file import Run


class Stage1Config(BaseModel):
    """How a head is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    seed: int = Field(default=0, ge=0)
    """Of splits, weights, batches and dropout."""
    width: int = Field(default=128, ge=1)
    """Of each projection and of the hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a hidden unit is dropped while training."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's."""
    batch_rows: int = Field(default=256, ge=1)
    """Rows in a step."""
    max_epochs: int = Field(default=300, ge=1)
    """Passes over the training split at most."""
    patience_epochs: int = Field(default=30, ge=1)
    """Passes without a lower validation loss before training stops."""
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the images that decide when to stop."""
    held_out_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the images for the temperature and the reported accuracy."""
    mixup: float = Field(default=0.4, ge=0, allow_inf_nan=False)
    """How much rows are mixed while training, as Beta(mixup, mixup) says; 0: not at all."""
    averaging: float = Field(default=0.995, ge=0, lt=1)
    """The head is a running average of the weights that are learnt, so what one batch of mixed rows
    pulls to and fro is not in it: the share of it that a step leaves as it was. Less at first,
    because it begins with random weights; 0: the weights themselves."""
    agent_reliability: float = Field(default=0.9, gt=0, le=1)
    """How often an agent is taken to be right whose hints stand in for labels; what records with
    both say about it counts more."""

    @model_validator(mode="after")
    def _check(self) -> Stage1Config:
        if self.validation_share + self.held_out_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} and held_out_share "
                f"{self.held_out_share} leave nothing to train on; give less of them"
            )
        return self


class Stage1Run(Run, Stage1Config):  # type: ignore[misc]  # pydantic merges both configs
    """A run of stage 1."""

    features: Path
    """Feature cache to train on, as `molora train features` writes it."""
    known: Path | None = None
    """Feature cache of the looks that the router is to know; unset: those of features."""

    @property
    def config(self) -> Stage1Config:
        """How its head is trained."""
        return Stage1Config(**{name: getattr(self, name) for name in Stage1Config.model_fields})
