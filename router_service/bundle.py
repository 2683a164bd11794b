"""The router bundle on disk: `router.json` and `router.onnx`, read once and checked.

Knows files and digests; does not run the head and knows no executor.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from router_service.errors import BundleError
from router_service.manifest import Manifest

MANIFEST_FILE = "router.json"
HEAD_FILE = "router.onnx"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files fit together.

    Attributes:
        manifest: What `router.json` states.
        head: The bytes of `router.onnx`; their digest is the manifest's.
        version: sha256 (hex) over a line `<sha256>  <file name>` for each file, names sorted.
    """

    manifest: Manifest
    head: bytes
    version: str


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle.

    Args:
        directory: Folder of `router.json` and `router.onnx`.

    Returns:
        The bundle. The head itself is checked where it is opened, see `head.Head`.

    Raises:
        BundleError: A file is missing, has another shape, or is not the one the manifest names.
    """
    stated, head = _read(directory / MANIFEST_FILE), _read(directory / HEAD_FILE)
    try:
        manifest = TypeAdapter(Manifest).validate_json(stated, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(
            f"{directory / MANIFEST_FILE}: {where}: {first['msg']}; export the bundle again"
        ) from error
    if _sha256(head) != manifest.head_sha256:
        raise BundleError(
            f"{directory / HEAD_FILE} is not the file that {MANIFEST_FILE} names (its sha256 "
            "differs); export the bundle again"
        )
    lines = f"{_sha256(stated)}  {MANIFEST_FILE}\n{_sha256(head)}  {HEAD_FILE}\n"
    return Bundle(manifest, head, _sha256(lines.encode()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); name the folder that `molora export` wrote"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
