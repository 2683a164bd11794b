"""What the counts say about a file beyond its totals."""

import zlib

import pytest
from PIL import Image

from training.data.calls import ToolCall
from training.data.records import new_record, write_records
from training.data.stats import collect_stats

CLICK = ToolCall.computer_use("left_click", coordinate=[1, 1])


def write(path, rows):
    records = [
        new_record(str(n), image, prompt, [CLICK], {}).labelled(adapter)
        for n, (adapter, prompt, image) in enumerate(rows)
    ]
    write_records(path, records)
    return path


@pytest.fixture
def folder(tmp_path):
    for name, size in (("a", (8, 6)), ("b", (8, 6)), ("c", (5, 4))):
        Image.new("RGB", size, "#123456").save(tmp_path / f"{name}.png")
    return tmp_path


def told(path):
    (file,) = collect_stats([path]).files
    return file.told_by_prompt, file.told_by_size


def test_words_and_sizes_that_one_expert_has_alone_tell_it(folder):
    rows = [("x", "Click", "a.png"), ("x", "Click", "a.png"), ("y", "Open", "c.png")] * 2
    assert told(write(folder / "r.jsonl", rows)) == (1.0, 1.0)


def test_shared_words_and_sizes_tell_nothing(folder):
    rows = [("x", "Open", "a.png"), ("y", "Open", "b.png")] * 2
    assert told(write(folder / "r.jsonl", rows)) == (0.0, 0.0)


def test_what_one_record_has_alone_is_not_told_by_others(folder):
    rows = [("x", "Click 1", "a.png"), ("x", "Click 2", "a.png"), ("y", "Click 3", "b.png")]
    prompt, size = told(write(folder / "r.jsonl", rows))
    assert prompt == 0.0
    # The two of x have each other and one rival: a tie, so no one is told.
    assert size == 0.0


def test_the_majority_is_told_and_the_rest_is_not(folder):
    rows = [("x", "Open", "a.png")] * 3 + [("y", "Open", "b.png")]
    assert told(write(folder / "r.jsonl", rows)) == (0.75, 0.75)


def test_an_empty_file_tells_nothing(folder):
    assert told(write(folder / "r.jsonl", [])) == (None, None)


def test_an_image_whose_header_is_cut_is_counted_and_ends_nothing(folder):
    whole = (folder / "a.png").read_bytes()
    # The header's length says 4 of its 13 bytes, and the check sum behind these is right.
    header = b"IHDR" + whole[16:20]
    cut = whole[:8] + (4).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
    (folder / "cut.png").write_bytes(cut + whole[33:])
    rows = [("x", "Open", "cut.png"), ("x", "Open", "a.png")]
    first, second = (write(folder / f"{n}.jsonl", rows) for n in (1, 2))
    found = collect_stats([first, second])
    assert [(f.images, f.missing_images, f.image_sizes) for f in found.files] == [
        (2, 1, {"8x6": 1}),
    ] * 2
    assert found.shared_images == 1


def test_files_share_images_by_content_and_not_by_name(folder):
    first = write(folder / "1.jsonl", [("x", "Open", "a.png"), ("x", "Open", "c.png")])
    renamed = write(folder / "2.jsonl", [("x", "Open", "b.png")])
    other = folder / "other"
    other.mkdir()
    Image.new("RGB", (8, 6), "#654321").save(other / "a.png")
    same_name = write(other / "3.jsonl", [("x", "Open", "a.png"), ("x", "Open", "gone.png")])
    assert collect_stats([first, renamed]).shared_images == 1
    assert collect_stats([first, same_name]).shared_images == 0
    assert collect_stats([first]).shared_images == 0
