"""Screens: what is decoded, what is refused before a decoder sees it, and with which reason."""

from __future__ import annotations

import io
import random
import struct
import time
import warnings
import zlib

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from executor_service.model.screen import ScreenLimits, ScreenReader
from service_chassis.errors import InvalidArgument
from tests.support.checkpoints import untrained_checkpoint


@pytest.fixture(scope="module")
def reader():
    return ScreenReader(untrained_checkpoint(), ScreenLimits(max_bytes=2**20, max_pixels=2_000_000))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def drawn(mode: str = "RGB", size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.effect_noise(size, 60).convert(mode)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))
        + kind
        + payload
        + struct.pack(">I", zlib.crc32(kind + payload))
    )


def refusal(reader: ScreenReader, data: bytes) -> str:
    with pytest.raises(InvalidArgument) as caught:
        reader.read(data)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_equal_the_checkpoints_own_processor(reader, kind):
    data = encode(drawn(size=(225, 208)), kind)
    processor = Qwen2VLImageProcessorPil.from_pretrained(untrained_checkpoint())
    expected = processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="pt")

    read = reader.read(data)

    assert torch.equal(read.pixel_values, expected["pixel_values"])
    assert (read.width, read.height, read.image_tokens) == (225, 208, 156)
    assert read.grid_thw == tuple(expected["image_grid_thw"][0].tolist())


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P"])
def test_other_colour_modes_become_what_pillow_converts_them_to(reader, mode):
    image = drawn().convert("L").convert(mode) if mode == "LA" else drawn(mode)
    data = encode(image)

    assert reader.decode(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_progressive_jpeg_and_restart_markers_are_read(reader):
    reader.read(encode(drawn(), "JPEG", progressive=True, quality=95))
    reader.read(encode(drawn(), "JPEG", restart_marker_blocks=1))


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded(reader, monkeypatch):
    """Each is a few bytes for the sender, and a pass over all pixels for the reader."""
    data = encode(drawn(), "JPEG", progressive=True)
    reader.read(data)
    last = data[data.rindex(b"\xff\xda") : -2]
    monkeypatch.setattr("executor_service.model.screen._decode", pytest.fail)
    assert refusal(reader, data[:-2] + last * 64 + data[-2:]) == "UNREADABLE_SCREEN"


def test_warnings_of_other_threads_stay_warnings(reader, monkeypatch):
    """Filters are the process's: the model thread may warn while a screen is decoded."""
    convert = Image.Image.convert

    def warned(self, mode):
        warnings.warn("of another library", UserWarning, stacklevel=1)
        return convert(self, mode)

    monkeypatch.setattr(Image.Image, "convert", warned)
    with pytest.warns(UserWarning, match="of another library"):
        reader.read(encode(drawn()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "EMPTY_SCREEN"),
        (b"hello", "UNSUPPORTED_SCREEN_FORMAT"),
        (b"\x89PNG\r\n\x1a\n", "UNREADABLE_SCREEN"),
        (b"\xff\xd8\xff", "UNREADABLE_SCREEN"),
        (b"\xff\xd8\xff\xe0\x00\x10", "UNREADABLE_SCREEN"),
        (encode(drawn(), "GIF"), "UNSUPPORTED_SCREEN_FORMAT"),
        (encode(drawn(), "TIFF"), "UNSUPPORTED_SCREEN_FORMAT"),
        (encode(drawn(), "WEBP"), "UNSUPPORTED_SCREEN_FORMAT"),
        (encode(drawn()) + b"PK\x03\x04", "UNREADABLE_SCREEN"),
        (encode(drawn(), "JPEG") + b"\x00", "UNREADABLE_SCREEN"),
        (encode(drawn())[:-20], "UNREADABLE_SCREEN"),
        (encode(drawn(), "JPEG")[:-20], "UNREADABLE_SCREEN"),
        (encode(drawn(size=(8, 8))), "SCREEN_TOO_SMALL"),
        (encode(drawn(size=(1, 900))), "SCREEN_TOO_SMALL"),
        (encode(drawn(size=(900, 20))), "SCREEN_TOO_NARROW"),
        (encode(drawn(size=(2000, 1200)), "JPEG", quality=1), "SCREEN_TOO_LARGE"),
        (b"\x89PNG\r\n\x1a\n" + bytes(2**20), "SCREEN_TOO_LARGE"),
        (encode(drawn("CMYK"), "JPEG"), "UNSUPPORTED_COLOURS"),
        (encode(Image.new("I;16", (64, 64))), "UNSUPPORTED_COLOURS"),
    ],
)
def test_refusals_name_their_reason(reader, data, reason):
    assert refusal(reader, data) == reason


def test_one_flipped_bit_in_a_png_chunk_is_found(reader):
    data = bytearray(encode(drawn()))
    data[data.index(b"IDAT") + 10] ^= 1

    assert refusal(reader, bytes(data)) == "UNREADABLE_SCREEN"


def test_animation_is_refused(reader):
    frames = encode(drawn(), save_all=True, append_images=[drawn()])

    assert refusal(reader, frames) == "ANIMATED_SCREEN"


def test_a_rotation_flag_is_refused_and_upright_is_not(reader):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert refusal(reader, encode(drawn(), "JPEG", exif=exif)) == "ROTATED_SCREEN"
    exif[0x0112] = 1
    reader.read(encode(drawn(), "JPEG", exif=exif))


def test_compressed_text_never_reaches_the_decoder(reader):
    """A zTXt bomb is dropped with the other chunks that decide no pixel."""
    data = encode(drawn())
    bomb = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(50_000_000)))
    with_bomb = data[:33] + bomb + data[33:]

    assert reader.decode(with_bomb).tobytes() == reader.decode(data).tobytes()


def test_a_declared_bomb_is_refused_by_its_header(reader):
    header = struct.pack(">IIBBBBB", 13_000, 13_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000))
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    started = time.perf_counter()

    assert refusal(reader, data) == "SCREEN_TOO_LARGE"
    assert time.perf_counter() - started < 1


def test_too_many_chunks_are_refused(reader):
    data = encode(drawn())
    many = data[:33] + chunk(b"tEXt", b"a\x00b") * 10_000 + data[33:]

    assert refusal(reader, many) == "UNREADABLE_SCREEN"


def test_damaged_files_only_ever_raise_invalid_argument(reader):
    rng = random.Random(0)
    for kind in ("PNG", "JPEG"):
        good = encode(drawn(), kind)
        for _ in range(300):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                reader.decode(bytes(data[: rng.randint(1, len(data))]))
            except InvalidArgument:
                continue
