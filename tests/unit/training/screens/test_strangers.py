"""Pictures that no expert knows: of the size that was asked for, and the same for the same seed."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from training.screens.strangers import STRANGERS

SIZE = (300, 200)


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_picture_of_the_size_and_seed(kind: str) -> None:
    one, again, other = (STRANGERS[kind](random.Random(seed), SIZE) for seed in (1, 1, 2))
    assert (one.mode, one.size) == ("RGB", SIZE)
    assert one.tobytes() == again.tobytes()
    assert one.tobytes() != other.tobytes()


def counts(image: Image.Image) -> list[int]:
    """Pixels of each colour."""
    colours = image.getcolors(image.width * image.height)
    assert colours is not None
    return [count for count, _ in colours]


def test_the_kinds_are_what_they_are_called() -> None:
    found = {kind: counts(draw(random.Random(3), SIZE)) for kind, draw in STRANGERS.items()}
    assert len(found["one colour"]) == 1
    assert len(found["noise"]) > 50_000
    # What is drawn with ink and widgets has a ground that takes most of it.
    for kind in ("document", "form"):
        assert max(found[kind]) > 0.2 * SIZE[0] * SIZE[1]
