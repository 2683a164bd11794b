"""Splits by image and by source, and the leak check."""

import hashlib
import json

import pytest
from PIL import Image

from training.data.calls import ToolCall
from training.data.images import content_digest, find_image, image_size, open_image
from training.data.records import new_record, write_records
from training.data.split import (
    SHARES,
    LeakError,
    check_leaks,
    check_shares,
    shared_content,
    split_by_image,
    split_by_source,
    split_names,
)
from training.run_file import digest_of

CLICK = ToolCall.computer_use("left_click", coordinate=[1, 1])


def digest(text):
    return hashlib.sha256(text.encode()).digest()[:16]


def file_with(folder, name, images, about=None):
    records = [
        new_record(str(n), image, "Click", [CLICK], about or {}) for n, image in enumerate(images)
    ]
    write_records(folder / name, records)
    return folder / name


def picture(path, colour, mode="RGB", **how):
    Image.new(mode, (8, 6), colour).save(path, **how)
    return path.name


def test_each_label_gets_its_share_in_each_split():
    labels = {digest(f"{label}{n}"): label for label in ("a", "b") for n in range(20)}
    chosen = split_by_image(labels, SHARES, seed=0)
    for label in ("a", "b"):
        names = [chosen[d] for d, own in labels.items() if own == label]
        assert [names.count(name) for name in SHARES] == [16, 2, 2]
    assert chosen == split_by_image(dict(reversed(labels.items())), SHARES, seed=0)
    assert chosen != split_by_image(labels, SHARES, seed=1)


def test_too_few_images_of_a_label_are_refused():
    labels = {digest("1"): "a", digest("2"): "a"}
    with pytest.raises(ValueError, match="a has 2 images for 3 splits"):
        split_by_image(labels, SHARES, seed=0)


def test_every_split_gets_one_even_of_few():
    assert split_names(3, SHARES) == ["train", "valid", "held_out"]
    assert split_names(10, SHARES).count("train") == 8


@pytest.mark.parametrize(("splits", "count"), [(4, 6), (7, 11), (7, 7)])
def test_of_equal_shares_each_gets_one(splits, count):
    found = split_names(count, {str(at): 1 / splits for at in range(splits)})
    assert len(found) == count
    assert len(set(found)) == splits


def test_sources_that_share_an_image_stay_together():
    sources = {
        digest("1"): ["a"], digest("2"): ["a", "b"], digest("3"): ["c", "b"], digest("4"): ["d"],
        digest("5"): ["e"],
    }  # fmt: skip
    chosen = split_by_source(sources, SHARES)
    assert chosen[digest("1")] == chosen[digest("2")] == chosen[digest("3")] == "train"
    assert {chosen[digest("4")], chosen[digest("5")]} == {"valid", "held_out"}
    with pytest.raises(ValueError, match="3 sources that share no image cannot fill 4 splits"):
        split_by_source(sources, {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25})


def test_sources_fill_shares_as_far_as_they_can():
    sources = {digest(f"{s}/{n}"): [str(s)] for s in range(20) for n in range(5)}
    names = list(split_by_source(sources, SHARES).values())
    assert [names.count(name) for name in SHARES] == [80, 10, 10]


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="positive and add up to 1"):
        check_shares(shares)


def test_a_leak_is_found_by_content_and_is_loud(tmp_path):
    picture(tmp_path / "a.png", "#123456")
    picture(tmp_path / "renamed.png", "#123456", compress_level=0)
    picture(tmp_path / "b.png", "#654321")
    train = file_with(tmp_path, "train.jsonl", ["a.png", "a.png"])
    test = file_with(tmp_path, "test.jsonl", ["renamed.png", "b.png"])
    assert shared_content([train, test]) == {(train, test): 1}
    with pytest.raises(LeakError, match=r"1 images of train.jsonl are in test.jsonl too"):
        check_leaks([train, test])
    clean = file_with(tmp_path, "clean.jsonl", ["b.png"])
    check_leaks([train, clean])


def test_what_was_made_of_a_screen_leaks_it(tmp_path):
    picture(tmp_path / "a.png", "#123456")
    picture(tmp_path / "darker.png", "#102030")
    picture(tmp_path / "lighter.png", "#405060")
    origin = {"changed_from": digest_of(tmp_path / "a.png")}
    one = file_with(tmp_path, "one.jsonl", ["a.png"])
    two = file_with(tmp_path, "two.jsonl", ["darker.png"], origin)
    three = file_with(tmp_path, "three.jsonl", ["lighter.png"], origin)
    assert shared_content([one, two, three]) == dict.fromkeys(
        [(one, two), (one, three), (two, three)], 1
    )
    four = file_with(tmp_path, "four.jsonl", ["lighter.png"], {"changed_from": "a.png"})
    with pytest.raises(ValueError, match="changed_from is no sha256"):
        check_leaks([one, four])


def test_an_image_that_cannot_be_read_cannot_be_cleared(tmp_path):
    picture(tmp_path / "a.png", "#123456")
    train = file_with(tmp_path, "train.jsonl", ["a.png"])
    gone = file_with(tmp_path, "gone.jsonl", ["gone.png"])
    with pytest.raises(ValueError, match=r"gone.jsonl cannot be checked for leaks"):
        check_leaks([train, gone])
    assert shared_content([train, gone], strict=False) == {}


def test_content_is_size_and_pixels(tmp_path):
    same = [
        tmp_path / picture(tmp_path / "a.png", "#123456"),
        tmp_path / picture(tmp_path / "b.png", "#123456ff", "RGBA"),
        tmp_path / picture(tmp_path / "c.png", "#123456", compress_level=0),
    ]
    assert len({content_digest(path) for path in same}) == 1
    Image.new("RGB", (6, 8), "#123456").save(tmp_path / "turned.png")
    assert content_digest(tmp_path / "turned.png") != content_digest(same[0])
    assert len(content_digest(same[0])) == 16


def test_palettes_are_looked_at_as_colours(tmp_path):
    for name, colour in (("a", (1, 2, 3)), ("b", (3, 2, 1))):
        image = Image.new("P", (4, 4), 0)
        image.putpalette([*colour, *[0] * 765])
        image.save(tmp_path / f"{name}.png")
    assert content_digest(tmp_path / "a.png") != content_digest(tmp_path / "b.png")


def test_what_is_no_whole_screen_is_not_opened(tmp_path):
    picture(tmp_path / "a.gif", 1, "P")
    picture(tmp_path / "a.png", "#123456")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_bytes(json.dumps({}).encode())
    for name in ("a.gif", "short.png", "text.png"):
        with pytest.raises(ValueError, match="cannot be read"):
            open_image(tmp_path / name)
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    for opened in (open_image, image_size):
        with pytest.raises(ValueError, match="larger than any screen"):
            opened(tmp_path / "huge.png")
    assert open_image(tmp_path / "a.png").size == image_size(tmp_path / "a.png") == (8, 6)


def test_a_size_is_read_from_the_header_alone(tmp_path):
    picture(tmp_path / "a.png", "#123456")
    whole = (tmp_path / "a.png").read_bytes()
    # The header, and the name of the chunk behind it.
    (tmp_path / "short.png").write_bytes(whole[:41])
    assert image_size(tmp_path / "short.png") == (8, 6)
    for length in (0, 20, 32):
        (tmp_path / "short.png").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            image_size(tmp_path / "short.png")


def test_an_image_is_found_in_the_first_folder_and_never_outside(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    picture(tmp_path / "a.png", "#000000")
    assert find_image("a.png", [inner, tmp_path]) == tmp_path / "a.png"
    picture(inner / "a.png", "#000000")
    assert find_image("a.png", [inner, tmp_path]) == inner / "a.png"
    with pytest.raises(ValueError, match="missing"):
        find_image("b.png", [inner, tmp_path])
    for name in ("a" * 300, "\ud800.png", "a\0.png"):
        with pytest.raises(ValueError, match="missing"):
            find_image(name, [inner])
    (inner / "link.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match="leads out"):
        find_image("link.png", [inner])
