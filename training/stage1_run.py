"""Stage 1's configuration as a file: saved with the bundle, and read to repeat the run.

Knows YAML and the fields of `Stage1Config`; trains nothing.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from training.run_config import RUN_FILE, explained, read_mapping, write_whole
from training.stage1 import Stage1Config


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
