"""Where an administrator may load an expert from.

Knows names, paths and file kinds; does not read a file's content.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path, PurePosixPath

from service_chassis.errors import FailedPrecondition, InvalidArgument, NotFound

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def check_name(name: str) -> None:
    """Refuse what is not an expert's name.

    Raises:
        InvalidArgument: The name is not lower-case letters, digits and hyphens, 63 at most.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument(
            "BAD_EXPERT_NAME",
            "An expert's name is 1 to 63 lower-case letters, digits and hyphens.",
            field="name",
        )


def resolve_adapter(root: Path | None, path: str) -> Path:
    """The adapter directory that an administrator named, if it may be read.

    Args:
        root: The configured root of experts.
        path: Directory below the root, as sent; its files lie in it or in its `adapter` directory.

    Returns:
        The directory that was named, free of symbolic links.

    Raises:
        FailedPrecondition: No root is configured.
        InvalidArgument: The path is empty, absolute, leaves the root (also by a symbolic link), or
            a file of the adapter is not a plain file with one name.
        NotFound: There is no adapter.
    """
    if root is None:
        raise FailedPrecondition(
            "NO_EXPERTS_ROOT", "This server has no root of experts; set experts_root and restart."
        )
    wanted = PurePosixPath(path)
    if not path or "\0" in path or wanted.is_absolute() or ".." in wanted.parts:
        raise _bad_path()
    directory = _below(root, root / wanted)
    home = directory / "adapter"
    if not home.is_dir():
        home = directory
    for name in _FILES:
        _check_file(_below(root, home / name))
    return directory


def _below(root: Path, path: Path) -> Path:
    """The real path, which must exist below the root."""
    try:
        real, top = path.resolve(strict=True), root.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(
            "NO_ADAPTER", "There is no adapter at this path below the root of experts."
        ) from error
    except (OSError, RuntimeError) as error:
        raise _bad_path() from error
    if top not in real.parents:
        raise _bad_path()
    return real


def _check_file(path: Path) -> None:
    # stat opens nothing: a FIFO or a device cannot block it. A second name could be outside.
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise _bad_path()


def _bad_path() -> InvalidArgument:
    return InvalidArgument(
        "BAD_ADAPTER_PATH",
        "Give a directory below the root of experts that holds an adapter as plain files.",
        field="path",
    )
