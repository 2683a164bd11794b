"""Synthesized data sets: readable, labelled, split by image, the same for the same seed."""

import hashlib
import random

import pytest
from PIL import Image

from training.data.labels import judge
from training.data.records import read_records
from training.data.stats import UNLABELLED, collect_stats
from training.data.synthesize import EXPERTS, synthesize
from training.screens.geometry import to_thousandths
from training.screens.reframe import FRESH_SIZES, SIZES, UNSEEN_SIZES, any_size
from training.screens.theme import FRESH_THEMES, THEMES, UNSEEN_THEMES, any_theme

SPLITS = ("train", "valid", "held_out")
TWO = ("calendar", "claim-window")


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(f.relative_to(folder)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "set"
    seen = []
    result = synthesize(
        out,
        images_per_kind=6,
        tasks_per_image=5,
        seed=3,
        experts=TWO,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(done, 12) for done in range(1, 13)]
    return out, result


def test_records_say_what_the_images_are(made):
    out, result = made
    for name in SPLITS:
        found = read_records(out / f"{name}.jsonl")
        assert found.refused == ()
        assert result.splits[name].records == len(found.records)
        for record in found.records:
            with Image.open(out / record.image) as image:
                image.load()
                expected = ("PNG", "RGBA") if record.adapter == "calendar" else ("JPEG", "RGB")
                assert (image.format, image.mode) == expected
                assert list(image.size) == record.metadata["image_size"]
                point = to_thousandths(*record.metadata["real_coords"], *image.size)
            assert record.calls[0].arguments["coordinate"] == list(point)


def test_no_image_is_in_two_splits_and_each_split_has_both_experts(made):
    out, _ = made
    stats = collect_stats([out / f"{name}.jsonl" for name in SPLITS])
    assert stats.shared_images == 0
    assert [file.images for file in stats.files] == [8, 2, 2]
    for file in stats.files:
        assert set(file.adapters) == {"calendar", "claim-window"}
        assert file.duplicate_ids == file.missing_images == 0
        assert file.most_records_per_image == 5
        assert sum(file.image_sizes.values()) == file.images


def test_the_label_rules_find_the_label_again(made):
    out, _ = made
    for record in read_records(out / "train.jsonl").records:
        row = record.to_json()
        label = row.pop("adapter")
        assert judge(row).label == label


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(made, tmp_path):
    out, _ = made
    synthesize(tmp_path / "again", images_per_kind=6, tasks_per_image=5, seed=3, experts=TWO)
    assert digest(tmp_path / "again") == digest(out)
    synthesize(tmp_path / "other", images_per_kind=6, tasks_per_image=5, seed=4, experts=TWO)
    assert digest(tmp_path / "other") != digest(out)


def test_several_processes_write_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.synthesize._MANY_IMAGES", 10)
    monkeypatch.setattr("training.data.synthesize.cores", lambda: 2)
    again = tmp_path / "again"
    synthesize(again, images_per_kind=6, tasks_per_image=5, seed=3, experts=TWO)
    assert digest(again) == digest(made[0])


def test_shares_decide_the_splits(tmp_path):
    result = synthesize(
        tmp_path / "set",
        images_per_kind=4,
        tasks_per_image=2,
        seed=0,
        experts=TWO,
        shares={"train": 0.5, "held_out": 0.5},
    )
    assert {name: split.images for name, split in result.splits.items()} == {
        "train": 4,
        "held_out": 4,
    }
    assert not (tmp_path / "set" / "valid.jsonl").exists()


@pytest.fixture(scope="module")
def all_seven(tmp_path_factory):
    out = tmp_path_factory.mktemp("seven") / "set"
    synthesize(
        out,
        images_per_kind=3,
        tasks_per_image=4,
        seed=1,
        experts=EXPERTS,
        other_sizes=0.8,
        shares={"all": 1.0},
    )
    return out, read_records(out / "all.jsonl")


def test_all_experts_are_drawn_and_their_answers_agree_with_their_images(all_seven):
    out, found = all_seven
    assert found.refused == ()
    assert {record.adapter for record in found.records} == set(EXPERTS)
    kinds = set()
    for record in found.records:
        with Image.open(out / record.image) as image:
            assert list(image.size) == record.metadata["image_size"]
            size = image.size
        first = record.calls[0].arguments
        coords = record.metadata["real_coords"]
        kinds.add("coordinate" in first)
        if "coordinate" in first:
            assert first["coordinate"] == list(to_thousandths(*coords, *size))
        else:
            assert coords is None
    assert kinds == {True, False}


def test_other_sizes_show_the_same_screens(tmp_path):
    for name, other_sizes in (("own", 0.0), ("other", 1.0)):
        synthesize(
            tmp_path / name,
            images_per_kind=2,
            tasks_per_image=50,
            seed=1,
            experts=("login-window",),
            other_sizes=other_sizes,
            shares={"all": 1.0},
        )
    own, other = (read_records(tmp_path / name / "all.jsonl").records for name in ("own", "other"))
    assert {r.prompt for r in other} <= {r.prompt for r in own}
    assert {tuple(r.metadata["image_size"]) for r in own} == {(502, 369)}
    assert {tuple(r.metadata["image_size"]) for r in other} != {(502, 369)}


@pytest.mark.parametrize(("looks", "held_back"), [("unseen", UNSEEN_SIZES), ("fresh", FRESH_SIZES)])
def test_looks_to_test_with_are_in_no_training_set(tmp_path, looks, held_back):
    synthesize(
        tmp_path / "set",
        images_per_kind=2,
        tasks_per_image=1,
        seed=1,
        experts=("calendar", "chart-screen"),
        looks=looks,
        shares={"all": 1.0},
    )
    sizes = {
        tuple(r.metadata["image_size"]) for r in read_records(tmp_path / "set/all.jsonl").records
    }
    assert sizes <= set(held_back)
    assert not set(UNSEEN_SIZES + FRESH_SIZES) & set(SIZES)
    assert not set(UNSEEN_SIZES) & set(FRESH_SIZES)


def test_any_looks_are_none_of_those_held_back():
    rng = random.Random(2)
    themes, sizes = [any_theme(rng) for _ in range(300)], [any_size(rng) for _ in range(300)]
    held_back = {theme.palette for theme in UNSEEN_THEMES + FRESH_THEMES}
    assert len(held_back) == 4
    assert not {theme.palette for theme in themes} & held_back
    assert len({theme.palette for theme in themes}) > 100
    assert set(THEMES) <= set(themes)
    assert not set(sizes) & set(UNSEEN_SIZES + FRESH_SIZES)
    assert set(SIZES) < set(sizes)


@pytest.mark.parametrize("theme_seed", range(20))
def test_a_made_up_theme_can_be_read(theme_seed):
    palette = any_theme(random.Random(theme_seed)).palette
    for ground in (palette.window, palette.panel, palette.header, palette.button):
        assert abs(_lightness(palette.text) - _lightness(ground)) > 0.35
    assert abs(_lightness(palette.on_accent) - _lightness(palette.accent)) > 0.25


def _lightness(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return (max(channels) + min(channels)) / 2


@pytest.mark.parametrize("experts", [(), ("calendar", "calendar"), ("calender",)])
def test_experts_that_cannot_be_drawn_are_refused(tmp_path, experts):
    with pytest.raises(ValueError, match="give different ones of calendar, claim-window"):
        synthesize(tmp_path / "s", images_per_kind=3, tasks_per_image=2, seed=0, experts=experts)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images_per_kind": 2}, "images_per_kind is 2"),
        ({"tasks_per_image": 0}, "tasks_per_image is 0"),
        ({"shares": {"train": 0.5}}, "add up to 1"),
        ({"shares": {"train": 1.0, "valid": 0.0}}, "positive"),
        ({"other_sizes": 1.5}, "other_sizes is 1.5"),
        ({"looks": "new"}, "looks is new: give one of own, any, unseen"),
    ],
)
def test_numbers_that_make_no_data_set_are_refused(tmp_path, changes, reason):
    arguments = {"images_per_kind": 3, "tasks_per_image": 2, "seed": 0, **changes}
    with pytest.raises(ValueError, match=reason):
        synthesize(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "kept.txt").write_text("x")
    with pytest.raises(ValueError, match="choose a new one"):
        synthesize(tmp_path, images_per_kind=3, tasks_per_image=2, seed=0)


def test_stats_report_leaks_missing_images_and_refusals(made, tmp_path):
    out, _ = made
    train = out / "train.jsonl"
    lines = train.read_text().splitlines()
    first = lines[0].replace(', "adapter": "calendar"', "")
    assert first != lines[0]
    leak, gone = out / "leak.jsonl", tmp_path / "gone.jsonl"
    leak.write_text("\n".join([first, first, "{"]))
    gone.write_text(lines[0])
    try:
        stats = collect_stats([train, leak, gone])
    finally:
        leak.unlink()
    assert stats.shared_images == 1
    leaked, missing = stats.files[1:]
    assert (leaked.records, leaked.duplicate_ids, len(leaked.refused)) == (2, 1, 1)
    assert leaked.adapters == {UNLABELLED: 2}
    assert (missing.missing_images, missing.image_sizes) == (1, {})
