"""Stage 1's configuration, and its file: saved with the bundle, and read to repeat the run.

Knows numbers and YAML; trains nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from training.run_config import RUN_FILE, explained, read_mapping, write_whole


@dataclass(frozen=True)
class Stage1Config:
    """How a head is trained.

    Attributes:
        seed: Of splits, weights, batches and dropout.
        width: Of each projection and of the hidden layer.
        dropout: Probability that a hidden unit is dropped while training.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        batch_rows: Rows in a step.
        max_epochs: Passes over the training split at most.
        patience_epochs: Passes without a lower validation loss before training stops.
        validation_share: Share of the images that decide when to stop.
        held_out_share: Share of the images for the temperature and the reported accuracy.
        mixup: How much rows are mixed while training, see `Lessons`; 0: not at all.
        averaging: The head is a running average of the weights that are learnt, so what one batch
            of mixed rows pulls to and fro is not in it: the share of it that a step leaves as it
            was. Less at first, because it begins with random weights; 0: the weights themselves.
        agent_reliability: How often an agent is taken to be right whose hints stand in for labels;
            what records with both say about it counts more.
    """

    seed: int = 0
    width: int = 128
    dropout: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_rows: int = 256
    max_epochs: int = 300
    patience_epochs: int = 30
    validation_share: float = 0.15
    held_out_share: float = 0.2
    mixup: float = 0.4
    averaging: float = 0.995
    agent_reliability: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.mixup < math.inf:
            raise ValueError(f"mixup is {self.mixup}: give a number from 0 on, such as 0.4")
        if not 0 <= self.averaging < 1:
            raise ValueError(f"averaging is {self.averaging}: give a share from 0 to below 1")


def save_run(config: Stage1Config, out: Path) -> Path:
    """Writes `run.yaml` beside a bundle; the same features and file give the same head.

    Returns:
        The file.
    """
    path = out / RUN_FILE
    write_whole(path, yaml.safe_dump(asdict(config), sort_keys=False))
    return path


def read_run(path: Path) -> Stage1Config:
    """The configuration in a `run.yaml` of stage 1; what it leaves out has its default.

    Raises:
        ValueError: It is no such file, or a value is unknown or wrong; one line a problem.
        OSError: It cannot be read.
    """
    values = read_mapping(path)
    if unknown := sorted(set(values) - {field.name for field in fields(Stage1Config)}):
        raise ValueError(f"{path} has {', '.join(unknown)}, which stage 1 does not know")
    try:
        return TypeAdapter(Stage1Config).validate_python(values)
    except ValidationError as error:
        raise ValueError("\n".join(explained(error))) from None
