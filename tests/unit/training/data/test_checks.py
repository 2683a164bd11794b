"""Faults that are found before any work is done, and how they are told."""

from dataclasses import replace

import pytest
from PIL import Image

from training.data import checks
from training.data.calls import ToolCall
from training.data.checks import check_hints, check_records
from training.data.images import image_size
from training.data.records import new_record

CLICK = ToolCall.computer_use("left_click", coordinate=[1, 1])


@pytest.fixture
def records(tmp_path):
    """Two records on each of two images."""
    for name in ("a", "b"):
        Image.new("RGB", (8, 6), "#123456").save(tmp_path / f"{name}.png")
    return [
        new_record(f"{name}-{n}", f"{name}.png", "Click December 3", [CLICK], {})
        for name in ("a", "b")
        for n in range(2)
    ]


def with_metadata(record, **metadata):
    return replace(record, metadata=metadata)


def test_whole_records_pass_and_each_header_is_read_once(records, tmp_path, monkeypatch):
    read = []

    def counted(path):
        read.append(path.name)
        return image_size(path)

    monkeypatch.setattr(checks, "image_size", counted)
    check_records([*records, with_metadata(records[0], changed_from="0aF" + 61 * "9")], tmp_path)
    assert read == ["a.png", "b.png"]


def test_an_origin_that_is_no_sha256(records, tmp_path):
    for origin in ("screen 7", 7, None, "a" * 63):
        faulty = [*records[:3], with_metadata(records[3], changed_from=origin)]
        with pytest.raises(
            ValueError,
            match=r"^1 of 4 records cannot be used, the first is b-1 with b.png: a record's "
            "changed_from is no sha256 in hex; leave it out$",
        ):
            check_records(faulty, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", b"pixels of a"])
def test_an_image_without_a_header(records, tmp_path, content):
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^2 of 4 .* b-0 with b.png: the image cannot be read"):
        check_records(records, tmp_path)


def test_an_image_that_is_missing(records, tmp_path):
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"^2 of 4 .* a-0 with a.png: the image is missing"):
        check_records(records, tmp_path)


def test_a_hint_that_cannot_be_read(records):
    check_hints([*records, with_metadata(records[0], agent_expert="calendar")], ["calendar"])
    faulty = [
        *records[:2],
        with_metadata(records[2], agent_expert="phone-app"),
        with_metadata(records[3], agent_expert="calendar", agent_confidence="high"),
    ]
    with pytest.raises(ValueError, match=r"^2 of 4 .* b-0 with b.png: .* none of calendar"):
        check_hints(faulty, ["calendar"])
