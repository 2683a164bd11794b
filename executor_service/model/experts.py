"""Experts: where they are found, what is known of a loaded one, and snapshots of all of them.

Knows directories, names and content digests; does not know how the base model runs.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from executor_service.core import ExpertIdentity, GateVector, expert_set_digest
from executor_service.errors import NotLoadable, unknown_expert
from executor_service.model.adapters import CONFIG_FILE, PICKLE_FILES, WEIGHTS_FILE
from executor_service.model.layers import GatedUpdate
from executor_service.model.mixture import LoraWeights, MixtureStacks
from executor_service.model.targets import RowKind, Target
from executor_service.model.tensor_file import read_private
from service_chassis.errors import AlreadyExists, InvalidArgument

ABOUT_FILE = "expert.json"
_MAX_ABOUT_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENVIRONMENT_PREFIX = "LORA_"
# Names that the environment cannot spell the way the experts are called.
_ENVIRONMENT_NAMES = {"claim": "claim-window"}
_MAX_PLANS = 64


@dataclass(frozen=True)
class ExpertLocation:
    """A name and the directory of an expert; `adapter/` in it is looked at first."""

    name: str
    directory: Path

    @property
    def adapter(self) -> Path:
        """The directory of the adapter's files."""
        nested = self.directory / "adapter"
        return nested if nested.is_dir() else self.directory


@dataclass(frozen=True)
class LoadedExpert:
    """An expert that was read, checked and matched to the base.

    `rank` is the largest over its modules. `weights` are in CPU memory: sets are stacked from them.
    """

    identity: ExpertIdentity
    label: int | None
    system_prompt: str | None
    task_types: tuple[str, ...]
    rank: int
    matched_modules: int
    targets_vision: bool
    source: Path
    weights: Mapping[str, LoraWeights]


@dataclass(frozen=True)
class About:
    """What `expert.json` says; `base_digest` is that of the base it was trained on."""

    label: int | None = None
    system_prompt: str | None = None
    task_types: tuple[str, ...] = ()
    base_digest: str | None = None


class ExpertSet:
    """An immutable snapshot of experts, sorted by name, their ranks stacked on the device.

    A new set shares nothing with the old one, which stays valid for requests that hold it. What it
    keeps beside the stacks are selections of them, so the updates are for one thread.

    Args:
        experts: In any order.
        targets: The model's modules, by name.
        device: Where the stacks live.
    """

    def __init__(
        self,
        experts: Iterable[LoadedExpert],
        targets: Mapping[str, Target],
        device: torch.device,
    ) -> None:
        self.experts = tuple(sorted(experts, key=lambda expert: expert.identity.name))
        self.identities = tuple(expert.identity for expert in self.experts)
        self.names = tuple(identity.name for identity in self.identities)
        self.digest = expert_set_digest(self.identities)
        _check_distinct(self.identities)
        self._targets = targets
        self._device = device
        self.stacks = MixtureStacks([expert.weights for expert in self.experts], targets, device)
        self._plans: OrderedDict[tuple[GateVector, ...], dict[str, GatedUpdate]] = OrderedDict()

    def with_expert(self, expert: LoadedExpert) -> ExpertSet:
        """A set that holds `expert`, in the place of one with its name if there is one.

        Raises:
            AlreadyExists: CONTENT_LOADED, the same content is here under another name.
        """
        others = [held for held in self.experts if held.identity.name != expert.identity.name]
        return ExpertSet([*others, expert], self._targets, self._device)

    def without(self, name: str) -> ExpertSet:
        """A set without the named expert.

        Raises:
            NotFound: UNKNOWN_EXPERT.
        """
        if name not in self.names:
            raise unknown_expert(name)
        others = [held for held in self.experts if held.identity.name != name]
        return ExpertSet(others, self._targets, self._device)

    def text_updates(self, gates: tuple[GateVector, ...]) -> dict[str, GatedUpdate]:
        """Updates of the language model for a batch, one gate vector per row.

        Args:
            gates: One gate vector per row.

        Returns:
            Updates by module name; empty if no row has an expert.
        """
        rows = gates if len(set(gates)) > 1 else gates[:1]
        if rows in self._plans:
            self._plans.move_to_end(rows)
            return self._plans[rows]
        active = {index for row in rows for index in row.active}
        weights, layers = self._tensors(rows)
        plan = self.stacks.text_updates(weights, layers, active) if active else {}
        self._plans[rows] = plan
        if len(self._plans) > _MAX_PLANS:
            self._plans.popitem(last=False)
        return plan

    def tower_updates(
        self, gates: tuple[GateVector, ...], patches: tuple[int, ...], merge_unit: int
    ) -> dict[str, GatedUpdate]:
        """Updates of the vision tower for packed images, one gate vector per image.

        Args:
            gates: One per image; layer gates are the language model's and not used here.
            patches: Patches of each image.
            merge_unit: Patches that become one image token.
        """
        images = tuple(GateVector(row.weights) for row in gates)
        images = images if len(set(images)) > 1 else images[:1]
        active = {index for row in images for index in row.active}
        if not active:
            return {}
        weights, _ = self._tensors(images)
        return self.stacks.tower_updates(weights, patches, merge_unit, active)

    def _tensors(self, rows: tuple[GateVector, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[rows, experts], and [rows, layers, experts] if any row has gates per layer."""
        weights = torch.tensor([row.weights for row in rows], device=self._device)
        depth = max(len(row.layers) for row in rows)
        if not depth:
            return weights, None
        layers = [row.layers or (row.weights,) * depth for row in rows]
        return weights, torch.tensor(layers, device=self._device)


@dataclass(frozen=True)
class Routing:
    """A snapshot of experts and the gates of each row (or of each screen)."""

    experts: ExpertSet
    gates: tuple[GateVector, ...]

    def __post_init__(self) -> None:
        if any(len(row.weights) != len(self.experts.names) for row in self.gates):
            raise ValueError("a gate vector needs one gate per expert of the set")


def discover_experts(
    root: Path | None, modules: Mapping[str, Path], environ: Mapping[str, str]
) -> list[ExpertLocation]:
    """Where experts are: named ones, then `LORA_<NAME>` variables, then folders of a root.

    Args:
        root: Holds one folder per expert, or None.
        modules: Name to directory, as given by the operator; the strongest.
        environ: The environment; `LORA_CHART_SCREEN` names `chart-screen`.

    Returns:
        Locations sorted by name, each name once. Folders without an adapter are not experts.

    Raises:
        NotLoadable: The root is not a directory.
        InvalidArgument: INVALID_EXPERT_NAME.
    """
    found: dict[str, Path] = {}
    if root is not None:
        if not root.is_dir():
            raise NotLoadable(f"{root} is no directory of experts; create it or name another")
        found.update({path.name: path for path in root.iterdir() if _holds_adapter(path)})
    for variable, value in environ.items():
        if variable.startswith(_ENVIRONMENT_PREFIX) and value:
            found[_name_of_variable(variable)] = Path(value)
    found.update(modules)
    return [ExpertLocation(check_name(name), found[name]) for name in sorted(found)]


def check_name(name: str) -> str:
    """The name, if it can be an expert's.

    Raises:
        InvalidArgument: INVALID_EXPERT_NAME.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            "INVALID_EXPERT_NAME",
            "An expert's name is 1 to 64 letters, digits, dots, dashes and underscores.",
        )
    return name


def read_about(location: ExpertLocation) -> About:
    """What `expert.json` says, beside `adapter/` or beside the adapter's files; it may be absent.

    Raises:
        InvalidArgument: BAD_EXPERT_JSON.
    """
    path = location.directory / ABOUT_FILE
    if not path.exists():
        return About()
    try:
        about = json.loads(read_private(path, _MAX_ABOUT_BYTES))
    except (ValueError, RecursionError) as error:
        raise _bad_about("(file)") from error
    if not isinstance(about, dict):
        raise _bad_about("(file)")
    task_types = about.get("task_types") or []
    if not isinstance(task_types, list) or not all(isinstance(kind, str) for kind in task_types):
        raise _bad_about("task_types")
    return About(
        label=_optional(about, "label", int),
        system_prompt=_optional(about, "system_prompt", str),
        task_types=tuple(task_types),
        base_digest=_optional(about, "base_digest", str),
    )


def targets_vision(weights: Iterable[str], targets: Mapping[str, Target]) -> bool:
    """Whether any of the modules belongs to the vision tower."""
    return any(targets[name].kind is not RowKind.TEXT for name in weights)


def _check_distinct(identities: Iterable[ExpertIdentity]) -> None:
    names: dict[str, str] = {}
    for identity in identities:
        if identity.digest in names:
            raise AlreadyExists(
                "CONTENT_LOADED",
                "The same content is loaded under another name; unload that first.",
                expert=names[identity.digest],
            )
        names[identity.digest] = identity.name


def _holds_adapter(path: Path) -> bool:
    files = (CONFIG_FILE, WEIGHTS_FILE, *PICKLE_FILES)
    return any((folder / name).exists() for folder in (path / "adapter", path) for name in files)


def _name_of_variable(variable: str) -> str:
    name = variable.removeprefix(_ENVIRONMENT_PREFIX).lower().replace("_", "-")
    return _ENVIRONMENT_NAMES.get(name, name)


def _optional(about: Mapping[str, Any], field: str, kind: type) -> Any:
    value = about.get(field)
    if value is not None and type(value) is not kind:
        raise _bad_about(field)
    return value


def _bad_about(field: str) -> InvalidArgument:
    return InvalidArgument(
        "BAD_EXPERT_JSON",
        "expert.json holds label (integer), system_prompt and task_types (strings).",
        field=field,
    )
