"""Screens of records on disk: found, opened one at a time, and known by content.

Knows files and pixels; knows no record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
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


def check_images(images: Sequence[str], folder: Path) -> None:
    """Looks for the images of all records, before hours are spent on the first of them.

    Args:
        images: Relative paths, one a record.
        folder: Where they are.

    Raises:
        ValueError: Some are not there; which of the records is the first without.
    """
    reasons: dict[str, str] = {}
    for image in dict.fromkeys(images):
        try:
            find_image(image, [folder])
        except ValueError as error:
            reasons[image] = str(error)
    if reasons:
        first = next(n for n, image in enumerate(images, start=1) if image in reasons)
        why = reasons[images[first - 1]]
        raise ValueError(
            f"{len(reasons)} of {len(set(images))} images cannot be used, the first is that of "
            f"record {first}: {why}"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system has: too long, or no Unicode
        return False


def open_image(path: Path) -> Image.Image:
    """Opens a screen and reads its pixels, in the mode that the file has.

    Raises:
        ValueError: It is no whole PNG or JPEG, or it is too large for a screen.
    """
    try:
        image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError("the image is larger than any screen: scale it down")
            image.load()
            return image.copy()
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError("the image cannot be read: give a whole PNG or JPEG") from None


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
