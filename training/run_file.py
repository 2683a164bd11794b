"""How a run's configuration is read, from file, environment and flags, and kept beside its results.

Knows where values come from and what a run began with; knows no stage's choices.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

RUN_FILE = "run.yaml"
INPUTS_FILE = "inputs.json"

# Among what a run was given: how many processes it is shared out over.
PROCESSES = "processes"

AnyRun = TypeVar("AnyRun", bound="Run")


class Run(BaseSettings):
    """What every run has. Saved beside its results, its configuration gives the same run again."""

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

    out: Path
    """Folder of the run."""

    @classmethod
    def read(cls: type[AnyRun], argv: Sequence[str], prog: str) -> AnyRun:
        """A run's configuration: flags over environment over file over defaults.

        Every field has a flag: `--batch-rows`, and `--gates.top-k` for one of a part; and a
        variable: MOLORA_TRAIN_BATCH_ROWS and MOLORA_TRAIN_GATES__TOP_K.

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
        values = _read_mapping(own.config) if own.config else {}
        try:
            # Unpacked: mypy reads the fields only and knows no argument of the source of flags.
            flagged: dict[str, Any] = {
                "_cli_parse_args": flags,
                "_cli_prog_name": f"{prog} [--config FILE]",
            }
            return cls(**values, **flagged)
        except ValidationError as error:
            raise ValueError("\n".join(_explained(error))) from None

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

    def written(self) -> dict[str, Any]:
        """Everything that was chosen, as YAML can hold it."""
        return self.model_dump(mode="json")

    def save(self) -> None:
        """Writes `run.yaml` into the run's folder, whole or not at all.

        What a run that never got to learn left there is replaced.

        Raises:
            ValueError: The folder holds a run with another configuration, or one that cannot be
                read.
        """
        path = self.out / RUN_FILE
        if path.exists():
            held = _read_mapping(path)
            # A folder may have been moved, or be named another way.
            changed = sorted(set(different(held, self.written())) - {"out"})
            if not changed:
                return
            if self._begun():
                raise ValueError(
                    f"{self.out} holds another run, with other {', '.join(changed)}; "
                    "give another folder, or the same configuration to go on"
                )
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(path, yaml.safe_dump(self.written(), sort_keys=False))

    def pin(self, inputs: Mapping[str, str]) -> None:
        """Writes down what the run was given, or checks that it is given the same again.

        Args:
            inputs: Digests by name, because a path says nothing of what is there; and `PROCESSES`.

        Raises:
            ValueError: The run began with something else, or does not say with what.
        """
        path = self.out / INPUTS_FILE
        if path.exists():
            held = self.pinned()
            changed = sorted(different(held, dict(inputs)))
            if not changed:
                return
            if self._begun():
                raise ValueError(self._refusal(held, inputs, changed))
        write_whole(path, json.dumps(dict(inputs), indent=2, sort_keys=True) + "\n")

    def pinned(self) -> dict[str, str]:
        """What the run was given, as `pin` wrote it down.

        Raises:
            ValueError: The folder does not say.
        """
        path = self.out / INPUTS_FILE
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read: put it back, or give another folder"
            ) from error
        if not isinstance(held, dict):
            raise ValueError(f"{path} is no mapping: put it back, or give another folder")
        return held

    def _refusal(
        self, held: Mapping[str, str], inputs: Mapping[str, str], changed: Sequence[str]
    ) -> str:
        """Why a run does not go on, and what to do."""
        if unsaid := sorted(set(inputs) - set(held)):
            return (
                f"the run in {self.out} was begun by a version that did not write down its "
                f"{', '.join(unsaid)}; give another folder, or go on with that version"
            )
        again = "what it began with"
        if changed == [PROCESSES]:
            again = f"run it with torchrun --nproc-per-node {held[PROCESSES]}"
        return (
            f"{', '.join(changed)} changed since the run in {self.out} began; "
            f"give another folder, or {again}"
        )

    def _begun(self) -> bool:
        """Whether the folder holds more than what a run is told."""
        return bool({path.name for path in self.out.iterdir()} - {RUN_FILE, INPUTS_FILE})


def digest_of(path: Path) -> str:
    """sha256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears when it is whole."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def different(held: Any, now: Any, name: str = "") -> list[str]:
    """Names of the values in which two written configurations differ, inner ones as `outer.inner`.

    Args:
        held: As JSON or YAML holds it.
        now: The same, to compare with it.
        name: Of what both are part of.
    """
    if not (isinstance(held, dict) and isinstance(now, dict)):
        return [] if held == now else [name]
    return [
        changed
        for key in {**held, **now}
        for changed in different(held.get(key), now.get(key), f"{name}.{key}" if name else key)
    ]


def _read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file of names and values says.

    Raises:
        ValueError: It is no such file.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no YAML: put it right, or give another") from error
    if not (isinstance(content, dict) and all(isinstance(name, str) for name in content)):
        raise ValueError(f"{path} is no mapping: write `name: value` lines, or give another")
    return content


def _explained(error: ValidationError) -> list[str]:
    """A line a problem: where it is, and what is wrong there."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        lines.append(f"{where}: {problem['msg']}")
    return lines
