"""Augmented screens: pure, seeded, and the answer still points at what it pointed at."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data.augment import (
    AugmentConfig,
    Example,
    augment,
    augment_record,
    blur,
    crop,
    random_window,
    recolour,
    scale,
    through_jpeg,
)
from training.data.calls import ToolCall
from training.data.records import IMAGE_MARK, Record, Turn, new_record, record_from_json
from training.screens.geometry import Box, to_thousandths

SIZE = (400, 300)


def screen(x=120, y=90):
    """Grey, with a red target of 20x20 px around (x, y)."""
    image = Image.new("RGB", SIZE, "#808080")
    ImageDraw.Draw(image).rectangle((x - 10, y - 10, x + 10, y + 10), fill="#ff0000")
    return image


def example(x=120, y=90, tolerance=(25, 33)):
    at = list(to_thousandths(x, y, *SIZE))
    return Example(screen(x, y), (ToolCall.computer_use("left_click", coordinate=at),), tolerance)


def middle_of_red(image):
    pixels = np.asarray(image, dtype=int)
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 1] > 90)
    return columns.mean(), rows.mean()


def test_answers_follow_whatever_is_done_to_the_screen():
    changed = set()
    for seed in range(60):
        rng = random.Random(seed)
        before = example(rng.randint(12, 388), rng.randint(12, 288))
        after = augment(before, rng)
        changed.add(after.image.size)
        (call,) = after.calls
        call.check()
        width, height = after.image.size
        x, y = middle_of_red(after.image)
        at = call.arguments["coordinate"]
        # Thousandths are rounded twice, pixels once.
        assert abs(at[0] / 1000 * width - x) < 1.5
        assert abs(at[1] / 1000 * height - y) < 1.5
        for own, side, was, at_first in zip(
            after.tolerance, after.image.size, before.tolerance, SIZE, strict=True
        ):
            assert own >= was
            assert side / at_first < 1.26
    assert len(changed) > 20


def test_augmenting_is_pure_and_seeded():
    before = example()
    pixels = before.image.tobytes()
    first, again = (augment(before, random.Random(3)) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.calls == again.calls
    assert before.image.tobytes() == pixels
    assert augment(before, random.Random(4)).image.tobytes() != first.image.tobytes()


def test_no_change_is_made_at_share_zero():
    before = example()
    assert augment(before, random.Random(0), AugmentConfig(share=0)) == before


def test_a_crop_moves_points_boxes_regions_and_tolerance():
    box = {"bbox_2d": [250, 200, 500, 600], "label": "a"}
    calls = (
        ToolCall.computer_use("scroll", coordinate=[500, 500], pixels=300),
        ToolCall("get_bbox", box),
        ToolCall("text_verification", {"regions": [box, {**box, "odd": 1}]}),
        ToolCall.computer_use("type", text="x"),
    )
    before = Example(screen(), calls, (10, 20))
    after = crop(before, Box(100, 60, 300, 260))
    assert after.image.size == (200, 200)
    assert after.tolerance == (20, 30)
    moved = [0, 0, 500, 600]
    assert [call.arguments for call in after.calls] == [
        {"action": "scroll", "coordinate": [500, 450], "pixels": 300},
        {"bbox_2d": moved, "label": "a"},
        {"regions": [{"bbox_2d": moved, "label": "a"}, {"bbox_2d": moved, "label": "a", "odd": 1}]},
        {"action": "type", "text": "x"},
    ]
    assert before.calls == calls
    assert box["bbox_2d"] == [250, 200, 500, 600]


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (Box(200, 0, 400, 300), "leaves out"),
        (Box(0, 0, 100, 300), "leaves out"),
        (Box(0, 120, 400, 300), "leaves out"),
        (Box(0, 0, 401, 300), "not on the 400x300 screen"),
        (Box(-1, 0, 400, 300), "not on the 400x300 screen"),
    ],
)
def test_a_crop_without_the_target_is_refused(window, reason):
    with pytest.raises(ValueError, match=reason):
        crop(example(), window)


def test_a_window_keeps_the_target_whole_and_most_of_the_screen():
    sizes = set()
    for seed in range(200):
        rng = random.Random(seed)
        at = (rng.randint(10, 390), rng.randint(10, 290))
        window = random_window(example(*at), rng, 0.2)
        assert window.x0 <= at[0] - 10 + 1
        assert window.x1 >= at[0] + 10 - 1
        assert window.y0 <= at[1] - 10 + 1
        assert window.y1 >= at[1] + 10 - 1
        assert window.x1 - window.x0 >= 0.6 * SIZE[0]
        sizes.add(window)
    assert len(sizes) > 150


def test_a_window_of_an_answer_that_points_nowhere_may_be_anywhere():
    waiting = Example(screen(), (ToolCall.computer_use("wait", time=3.0),))
    windows = [random_window(waiting, random.Random(seed), 0.2) for seed in range(50)]
    assert max(w.x0 for w in windows) > 60
    assert min(w.x1 for w in windows) < 340
    assert crop(waiting, windows[0]).calls == waiting.calls


def test_scaling_keeps_thousandths():
    after = scale(example(), 0.5)
    assert after.image.size == (200, 150)
    assert after.calls == example().calls
    assert scale(example(), 0.0001).image.size == (1, 1)


def test_pixels_change_and_sizes_do_not():
    image = screen()
    for changed in (recolour(image, 1.1, 1, 1), recolour(image, 1, 0.5, 1), blur(image, 1.5),
                    recolour(image, 1, 1, 0.5), through_jpeg(image, 40)):  # fmt: skip
        assert changed.size == image.size
        assert changed.mode == "RGB"
        assert changed.tobytes() != image.tobytes()
    assert recolour(image, 1, 1, 1).tobytes() == image.tobytes()


def test_a_record_moves_with_its_screen():
    call = ToolCall.computer_use("left_click", coordinate=list(to_thousandths(120, 90, *SIZE)))
    metadata = {
        "task_type": "t", "real_coords": [120, 90], "tolerance": 25, "image_size": [400, 300],
    }  # fmt: skip
    record = new_record("r", "images/a.png", "Click it", [call], metadata).labelled("desktop")
    for seed in range(8):
        moved, image = augment_record(record, screen().convert("RGBA"), random.Random(seed))
        assert image.mode == "RGB"
        assert record_from_json(moved.to_json()) == moved
        assert (moved.id, moved.prompt, moved.adapter) == ("r", "Click it", "desktop")
        assert list(moved.metadata) == list(metadata)
        assert moved.metadata["image_size"] == list(image.size)
        x, y = middle_of_red(image)
        assert abs(moved.metadata["real_coords"][0] - x) < 2
        assert abs(moved.metadata["real_coords"][1] - y) < 2
    assert record.metadata == metadata


def test_nothing_is_added_to_a_records_metadata():
    turns = (
        Turn("system", "s"), Turn("human", IMAGE_MARK + "Wait"),
        Turn("gpt", '<tool_call>\n{"name": "computer_use", "arguments": '
             '{"action": "wait", "time": 3.0}}\n</tool_call>'),
    )  # fmt: skip
    record = Record("r", "a.png", turns, {"real_coords": None})
    moved, _ = augment_record(record, screen(), random.Random(0), AugmentConfig(share=1))
    assert moved.metadata == {"real_coords": None}
    assert moved.system == "s"
    assert moved.calls == record.calls


@pytest.mark.parametrize(
    "changes",
    [
        {"share": 1.1}, {"scale": (0, 1)}, {"scale": (2, 1)}, {"crop": 0.5}, {"colour": 1},
        {"blur_px": -1}, {"jpeg_quality": (0, 50)}, {"jpeg_quality": (90, 50)},
    ],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=r"give|must"):
        AugmentConfig(**changes)
