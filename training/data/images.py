"""Screens of records on disk: found, opened one at a time, and known by content.

Knows files and pixels; knows no record.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

FORMATS = ("PNG", "JPEG")
_MOST_PIXELS = 64_000_000  # a screen of 8K has 33 million


def find_image(image: str, folders: Iterable[Path]) -> Path:
    """Finds a record's image.

    Args:
        image: Relative path, as the record has it.
        folders: Where it may be; the first that has it wins.

    Returns:
        The file.

    Raises:
        ValueError: No folder has it, or it leads out of the folder.
    """
    for folder in folders:
        path = folder / image
        if _is_file(path):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError("the image leads out of its folder: use a file inside")
            return path
    raise ValueError("the image is missing: put it where the record says")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system has: too long, or no Unicode
        return False


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in px of a screen, by its header; whether its pixels are whole is not seen.

    Raises:
        ValueError: It does not begin as a PNG or JPEG, or it is too large for a screen.
    """
    with _opened(path) as image:
        return image.size


def open_image(path: Path) -> Image.Image:
    """Opens a screen and reads its pixels, in the mode that the file has.

    Raises:
        ValueError: It is no whole PNG or JPEG, or it is too large for a screen.
    """
    with _opened(path) as image:
        image.load()
        return image.copy()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A screen whose pixels are not read yet; what its decoder raises is one error."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            fits = image.width * image.height <= _MOST_PIXELS
            if fits:
                yield image
    # Pillow's decoders raise all of these for damaged bytes.
    except (
        OSError, SyntaxError, ValueError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):  # fmt: skip
        raise ValueError("the image cannot be read: give a whole PNG or JPEG") from None
    if not fits:
        raise ValueError("the image is larger than any screen: scale it down")


def content_digest(path: Path) -> bytes:
    """Digest of size and pixels: equal for equal pictures, whatever their names and files.

    Args:
        path: A PNG or JPEG.

    Returns:
        16 bytes of SHA-256. The same pixels as PNG with and without an opaque alpha channel agree;
        a JPEG and the PNG that it was made from do not.

    Raises:
        ValueError: See `open_image`.
    """
    image = open_image(path).convert("RGBA")
    digest = hashlib.sha256(f"{image.width}x{image.height}/".encode())
    digest.update(image.tobytes())
    return digest.digest()[:16]
