"""Decodes a screen and turns it into the vision tower's input.

Knows Pillow and the checkpoint's image processor; does not know prompts, experts or the network.

The rule for colours is the model's own: what is not RGB is converted by Pillow's `convert("RGB")`
(an alpha channel is dropped, a palette resolved). 16-bit, CMYK and rotated files are refused, since
each has more than one reading.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from executor_service.model.screen_file import inspect, unreadable
from service_chassis.errors import InvalidArgument

_MODES = ("RGB", "RGBA", "L", "LA", "P")


@dataclass(frozen=True)
class ScreenLimits:
    """What is refused before decoding."""

    max_bytes: int = 8 * 2**20
    max_pixels: int = 16_000_000
    min_side_px: int = 16
    max_aspect: float = 20.0


@dataclass(frozen=True)
class PixelInput:
    """One screen, ready for the vision tower.

    `pixel_values` is float32 [patches, channels * temporal_patch * patch * patch]. `grid_thw`
    counts patches (1, rows, columns). `width` and `height` are those of the file as sent, in px.
    """

    pixel_values: torch.Tensor
    grid_thw: tuple[int, int, int]
    width: int
    height: int
    image_tokens: int

    @property
    def nbytes(self) -> int:
        """Bytes held by the pixel values."""
        return self.pixel_values.nbytes

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        frames, rows, columns = self.grid_thw
        merge = math.isqrt(frames * rows * columns // self.image_tokens)
        return rows // merge, columns // merge

    def token_at(self, x: float, y: float) -> int:
        """Index of the image token at a place; `x` and `y` are shares of width and height, < 1."""
        rows, columns = self.token_grid
        return int(y * rows) * columns + int(x * columns)


class ScreenReader:
    """Bytes to `PixelInput`, by the checkpoint's own preprocessing.

    Args:
        checkpoint: Directory that holds `preprocessor_config.json`.
        limits: What to refuse before decoding.
    """

    def __init__(self, checkpoint: Path, limits: ScreenLimits | None = None) -> None:
        self._processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        self._limits = limits or ScreenLimits()

    def read(self, data: bytes) -> PixelInput:
        """Checks, decodes and preprocesses one screen.

        Args:
            data: A PNG or JPEG file.

        Returns:
            The tower's input.

        Raises:
            InvalidArgument: The file is empty, damaged, of another format, animated, rotated, too
                large, too small, too narrow, or of a colour mode with more than one reading.
        """
        return self.preprocess(self.decode(data))

    def decode(self, data: bytes) -> Image.Image:
        """The screen as an RGB image; raises as `read` does."""
        if len(data) > self._limits.max_bytes:
            raise InvalidArgument(
                "SCREEN_TOO_LARGE",
                "The screen has more bytes than this server accepts; see GetServerInfo.limits.",
                max_bytes=self._limits.max_bytes,
            )
        width, height, clean = inspect(data)
        self._check_size(width, height)
        return _decode(clean, (width, height))

    def preprocess(self, image: Image.Image) -> PixelInput:
        """Resizes, normalises and patchifies an RGB image."""
        batch = self._processor(images=[image], return_tensors="pt")
        frames, rows, columns = (int(side) for side in batch["image_grid_thw"][0])
        tokens = frames * rows * columns // self._processor.merge_size**2
        return PixelInput(
            batch["pixel_values"].float(), (frames, rows, columns), *image.size, tokens
        )

    def resize(self, image: Image.Image) -> Image.Image:
        """The image at the size that `preprocess` would give it; doing so first changes nothing."""
        processor = self._processor
        height, width = smart_resize(
            image.height,
            image.width,
            factor=processor.patch_size * processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
        )
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _check_size(self, width: int, height: int) -> None:
        limits = self._limits
        if width * height > limits.max_pixels:
            raise InvalidArgument(
                "SCREEN_TOO_LARGE",
                "The screen has more pixels than this server accepts; see GetServerInfo.limits.",
                max_pixels=limits.max_pixels,
            )
        if min(width, height) < limits.min_side_px:
            raise InvalidArgument(
                "SCREEN_TOO_SMALL",
                "The screen is smaller than a patch; send the whole window.",
                min_side_px=limits.min_side_px,
            )
        if max(width, height) > limits.max_aspect * min(width, height):
            raise InvalidArgument(
                "SCREEN_TOO_NARROW",
                "The screen is a strip; send the whole window.",
                max_aspect=limits.max_aspect,
            )


def _decode(data: bytes, size: tuple[int, int]) -> Image.Image:
    # Its warnings are not turned into errors: filters are the process's, and would be the model
    # thread's too.
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        with image:
            if image.size != size or getattr(image, "n_frames", 1) != 1:
                raise unreadable()
            if image.mode not in _MODES:
                raise InvalidArgument(
                    "UNSUPPORTED_COLOURS",
                    "The screen is 16-bit or CMYK; save it as 8-bit RGB.",
                )
            image.load()
            return image.convert("RGB")
    # Pillow's decoders raise many kinds for damaged bytes; all of them mean the same to a caller.
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError,
        Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise unreadable() from error
