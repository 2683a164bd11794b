"""Looks at the bytes of a PNG or JPEG before any decoder does.

Knows the two file formats; does not know pixels, Pillow or the model. Everything here runs in time
linear in the bytes received and allocates no more than a copy of them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from service_chassis.errors import InvalidArgument

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
MAX_CHUNKS = 4096
# A progressive JPEG has about ten, and each of them is a pass over all of its pixels.
MAX_SCANS = 64
# All that decides a pixel; text, profiles and animation are not looked at or are refused.
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF = b"Exif\x00\x00"


def inspect(data: bytes) -> tuple[int, int, bytes]:
    """Checks the container and returns the declared size.

    Args:
        data: The whole file.

    Returns:
        Width and height in pixels, and the bytes that a decoder may see (for a PNG, without the
        chunks that decide no pixel).

    Raises:
        InvalidArgument: EMPTY_SCREEN, UNSUPPORTED_SCREEN_FORMAT, UNREADABLE_SCREEN,
            ANIMATED_SCREEN or ROTATED_SCREEN.
    """
    if not data:
        raise InvalidArgument("EMPTY_SCREEN", "The screen has no bytes; send a PNG or JPEG file.")
    if data.startswith(PNG_SIGNATURE):
        return _inspect_png(data)
    if data.startswith(JPEG_START):
        return _inspect_jpeg(data)
    raise InvalidArgument(
        "UNSUPPORTED_SCREEN_FORMAT", "The screen is neither PNG nor JPEG; convert it first."
    )


def unreadable() -> InvalidArgument:
    """The error for bytes that begin as an image and do not go on as one."""
    return InvalidArgument(
        "UNREADABLE_SCREEN", "The screen is damaged or cut short; capture it again."
    )


def _inspect_png(data: bytes) -> tuple[int, int, bytes]:
    size: tuple[int, int] | None = None
    kept = [PNG_SIGNATURE]
    last = b""
    for kind, payload, raw in _png_chunks(data):
        if kind in (b"acTL", b"fcTL", b"fdAT"):
            raise InvalidArgument("ANIMATED_SCREEN", "The screen is animated; send one frame.")
        if (kind == b"IHDR") != (size is None):
            raise unreadable()
        if kind == b"IHDR":
            if len(payload) != 13:
                raise unreadable()
            size = struct.unpack(">II", payload[:8])
        if kind in _PIXEL_CHUNKS:
            kept.append(raw)
        last = kind
    if size is None or last != b"IEND":
        raise unreadable()
    return size[0], size[1], b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Type, payload and raw bytes of each chunk up to IEND, which must end the file."""
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise unreadable()
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            raise unreadable()
        kind, payload = data[at + 4 : at + 8], data[at + 8 : end - 4]
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise unreadable()
        yield kind, payload, data[at:end]
        if kind == b"IEND":
            if end != len(data):
                raise unreadable()
            return
        at = end
    raise unreadable()


def _inspect_jpeg(data: bytes) -> tuple[int, int, bytes]:
    size: tuple[int, int] | None = None
    at, scans = 2, 0
    while True:
        marker, at = _next_marker(data, at)
        if marker == 0xD9:
            break
        if at + 2 > len(data):
            raise unreadable()
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        if length < 2 or len(segment) != length - 2:
            raise unreadable()
        if marker in _SIZE_MARKERS:
            if size is not None or len(segment) < 6:
                raise unreadable()
            height, width = struct.unpack(">HH", segment[1:5])
            size = (width, height)
        if marker == 0xE1 and segment.startswith(_EXIF):
            _refuse_rotation(segment[len(_EXIF) :])
        at += length
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise unreadable()
            at = _end_of_scan(data, at)
    if size is None or at != len(data):
        raise unreadable()
    return size[0], size[1], data


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at `at` (fill bytes skipped) and the offset behind it."""
    if at >= len(data) or data[at] != 0xFF:
        raise unreadable()
    while at < len(data) and data[at] == 0xFF:
        at += 1
    if at >= len(data) or data[at] in (0x00, 0xD8):
        raise unreadable()
    return data[at], at + 1


def _end_of_scan(data: bytes, at: int) -> int:
    """Offset of the first marker behind entropy-coded data (stuffed zeros and restarts skipped)."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise unreadable()
        if data[at + 1] == 0x00 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        elif data[at + 1] == 0xFF:
            at += 1
        else:
            return at


def _refuse_rotation(tiff: bytes) -> None:
    """Clicks are reported in the pixels that were sent, so a rotation flag would move them."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return
    (at,) = struct.unpack(f"{order}I", tiff[4:8])
    if at + 2 > len(tiff):
        return
    (count,) = struct.unpack(f"{order}H", tiff[at : at + 2])
    for entry in range(count):
        field = tiff[at + 2 + 12 * entry : at + 14 + 12 * entry]
        if len(field) < 12:
            return
        tag, _, _, value = struct.unpack(f"{order}HHIH", field[:10])
        if tag == 0x0112 and value != 1:
            raise InvalidArgument(
                "ROTATED_SCREEN", "The screen carries an EXIF rotation; save it upright without it."
            )
