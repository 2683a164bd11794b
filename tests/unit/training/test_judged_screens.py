"""New screens and strangers: how many of what, and that what is whole is not made again."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training import judged_screens as judged
from training.data.records import Record, read_records
from training.data.synthesize import EXPERTS
from training.feature_index import INDEX_FILE
from training.screens.strangers import STRANGERS

TWO = ("calendar", "login-window")
EXECUTOR: Any = object()


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, bool]]:
    """Where features were cached, and whether as unknown ones."""
    seen: list[tuple[Path, bool]] = []

    def cache_features(
        records: Path, root: Path, executor: object, out: Path, *, unknown: bool, progress: bool
    ) -> None:
        assert (records.parent, executor, progress) == (root, EXECUTOR, False)
        out.mkdir(exist_ok=True)
        (out / INDEX_FILE).write_text("{}")
        seen.append((out, unknown))

    monkeypatch.setattr(judged, "cache_features", cache_features)
    # The other kinds of screens take long to draw, and are drawn by the same function.
    monkeypatch.setattr(judged, "EXPERTS", (*TWO, "account-screen"))
    return seen


def drawn(folder: Path, experts: tuple[str, ...] = TWO, **changes: Any) -> Path:
    given: dict[str, Any] = {"images": 5, "seed": 3, **changes}
    return judged.judged_screens(folder, EXECUTOR, experts, progress=False, **given)


def records(folder: Path) -> tuple[Record, ...]:
    return tuple(read_records(folder / judged.RECORDS).records)


def test_as_many_of_each_expert_and_strangers_of_each_kind(
    tmp_path: Path, extracted: list[tuple[Path, bool]]
) -> None:
    folder = drawn(tmp_path / "new")
    screens = records(folder / "screens")
    assert collections.Counter(record.adapter for record in screens) == dict.fromkeys(TWO, 3)
    assert len({record.image for record in screens}) == 6
    strangers = records(folder / "strangers")
    sources = collections.Counter(record.metadata["source"] for record in strangers)
    assert sources == dict.fromkeys((*STRANGERS, "account-screen"), 1)
    for record in strangers:
        with Image.open(folder / "strangers" / record.image) as image:
            assert image.width > 200
    assert extracted == [(folder, False), (folder / "unknown", True)]


def test_all_that_can_be_drawn_are_experts(
    tmp_path: Path, extracted: list[tuple[Path, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "EXPERTS", TWO)
    strangers = records(drawn(tmp_path / "new", images=2) / "strangers")
    assert {record.metadata["source"] for record in strangers} == set(STRANGERS)
    assert all(record.adapter is None for record in strangers)


def test_what_is_whole_is_not_made_again(
    tmp_path: Path, extracted: list[tuple[Path, bool]]
) -> None:
    folder = drawn(tmp_path / "new", images=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    drawn(folder, images=2)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert len(extracted) == 2


def test_what_a_stopped_run_left_is_made_anew(
    tmp_path: Path, extracted: list[tuple[Path, bool]]
) -> None:
    whole = drawn(tmp_path / "whole", images=2)
    folder = tmp_path / "stopped"
    for part in ("screens", "strangers"):
        (folder / part / "images").mkdir(parents=True)
        (folder / part / "images" / "half.png").write_bytes(b"half")
    drawn(folder, images=2)
    for part in ("screens", "strangers"):
        files = [
            sorted(path.name for path in (each / part / "images").iterdir())
            for each in (whole, folder)
        ]
        assert files[0] == files[1]
    assert not (folder / "screens" / "images" / "half.png").exists()


def test_an_expert_whose_screens_nobody_can_draw(
    tmp_path: Path, extracted: list[tuple[Path, bool]]
) -> None:
    with pytest.raises(ValueError, match="chart-screens"):
        drawn(tmp_path / "new", ("calendar", "chart-screens"))
    assert "chart-screens" not in EXPERTS
    assert extracted == []
