"""`python -m clients.cli.reference`: docs/SETTINGS.md, from the settings classes themselves.

Knows how a settings class describes itself; knows no setting.
"""

from __future__ import annotations

import enum
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from service_chassis.settings import ServerSettings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/SETTINGS.md"
_HEAD = """\
# Settings

Written by `python -m clients.cli.reference`; a test compares it with the code.

A flag is over its variable, that over the file of `--config` (YAML, the names below as keys), that
over the default. `--check-config` checks and exits, `--print-config` prints what is in force,
`--help` lists all of it. A setting that cannot be used ends the server with exit code 2, one that
does not fit the model, the device or the bundle with 3.
"""


def reference() -> str:
    """The whole document."""
    from executor_service.settings import ExecutorSettings
    from router_service.settings import RouterSettings
    from service_chassis.settings import ServerSettings

    shared = set(ServerSettings.model_fields) - {"port", "metrics_port"}
    tables = [
        ("Both servers", _rows(RouterSettings, shared, prefix="MOLORA_ROUTER_", other="EXECUTOR")),
        ("Router", _rows(RouterSettings, set(RouterSettings.model_fields) - shared)),
        ("Executor", _rows(ExecutorSettings, set(ExecutorSettings.model_fields) - shared)),
    ]
    head = "| flag | variable | default | what |\n|---|---|---|---|\n"
    return _HEAD + "".join(f"\n## {title}\n\n{head}{rows}" for title, rows in tables)


def _rows(
    settings: type[ServerSettings], names: set[str], prefix: str = "", other: str = ""
) -> str:
    rows = []
    for name, info in settings.model_fields.items():
        if name not in names:
            continue
        variable = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
        variables = [variable]
        if other:
            variables.append(f"MOLORA_{other}_{variable.removeprefix(prefix)}")
        cells = [
            f"`--{name.replace('_', '-')}`",
            "<br>".join(f"`{one}`" for one in variables),
            _default(info),
            f"{' '.join((info.description or '').split())}{_choices(info.annotation)}",
        ]
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(rows)


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is None or value in ("", {}, ()):
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Path):
        # Where it is installed is each machine's own.
        return f"`{value.relative_to(DOCUMENT.parents[1]).as_posix()}` of the package"
    return f"`{value}`"


def _choices(annotation: Any) -> str:
    """The words that are taken, where they are a closed set and not told already."""
    arms = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return f" One of {', '.join(f'`{arm}`' for arm in arms)}."
    if isinstance(annotation, types.UnionType):
        return "".join(_choices(arm) for arm in arms)
    return ""


if __name__ == "__main__":
    DOCUMENT.write_text(reference(), encoding="utf-8")
