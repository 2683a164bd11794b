"""A balanced data set out of another one: what is in it, and what belongs together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from training.data.calls import ToolCall
from training.data.records import new_record, read_records, write_records
from training.data.sample import ORIGIN, draw_sample

STRATA = {("a", "day"): 6, ("a", "page"): 1, ("b", "row"): 3}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    records = []
    for (adapter, task), count in STRATA.items():
        for number in range(count):
            image = f"images/{adapter}-{task}-{number}.png"
            Image.effect_noise((60, 40), 40 + 9 * number).convert("RGB").save(folder / image)
            click = ToolCall.computer_use("left_click", coordinate=[500, 400])
            metadata = {"task_type": task, "image_size": [60, 40]}
            made = new_record(f"{adapter}/{task}/{number}", image, "Click", [click], metadata)
            records.append(made.labelled(adapter))
    write_records(folder / "train.jsonl", records)
    return folder / "train.jsonl"


def test_adapters_and_tasks_come_equally_often(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "out"
    made = draw_sample(
        source, out, records=40, progress=lambda done, total: told.append((done, total))
    )
    assert made.path == out / "train.jsonl"
    assert made.counts == {"a": {"day": 10, "page": 10}, "b": {"row": 20}}
    assert told[-1] == (40, 40)
    records = read_records(made.path).records
    assert Counter(str(record.adapter) for record in records) == {"a": 20, "b": 20}
    # A record that comes again has another id, and its screen is there once.
    assert len({record.id for record in records}) == 40
    for record in records:
        assert (out / record.image).read_bytes() == (source.parent / record.image).read_bytes()
        assert ORIGIN not in record.metadata
    assert len(list((out / "images").iterdir())) == 10


def test_changed_screens_say_what_they_were_made_of(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = draw_sample(source, out, records=12, augment=True, seed=3)
    records = read_records(made.path).records
    files = {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in source.parent.glob("images/*")
    }
    assert {record.metadata[ORIGIN] for record in records} <= files
    assert len({record.image for record in records}) == 12
    for record in records:
        with Image.open(out / record.image) as image:
            assert list(image.size) == record.metadata["image_size"]
    # The only screen of its stratum comes three times, changed each time.
    pages = [record for record in records if record.task_type == "page"]
    assert len({record.metadata[ORIGIN] for record in pages}) == 1
    assert len({(out / record.image).read_bytes() for record in pages}) == len(pages) == 3
    # What is drawn of changed screens still belongs to the first one.
    again = draw_sample(made.path, tmp_path / "again", records=12, augment=True)
    assert {record.metadata[ORIGIN] for record in read_records(again.path).records} <= files


def test_the_same_arguments_write_the_same(source: Path, tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        made = draw_sample(source, tmp_path / name, records=9, augment=True, seed=seed)
        images = sorted((tmp_path / name / "images").iterdir())
        files.append((made.path.read_bytes(), [image.read_bytes() for image in images]))
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_what_cannot_be_drawn(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an empty folder"):
        draw_sample(source, source.parent, records=1)
    with pytest.raises(ValueError, match="records is 0"):
        draw_sample(source, tmp_path / "out", records=0)
    next(source.parent.glob("images/b-*")).unlink()
    with pytest.raises(ValueError, match="the image is missing"):
        draw_sample(source, tmp_path / "out", records=20)
    row = json.loads(source.read_text().splitlines()[0])
    del row["adapter"]
    source.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="has no adapter"):
        draw_sample(source, tmp_path / "other", records=1)
