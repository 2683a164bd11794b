"""Where a long run's results would go: what is wrong is said before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training.outputs import check_writable


def test_a_new_file_gets_a_folder_and_nothing_else(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file.json")
    assert not list((tmp_path / "new").iterdir())


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text("before")
    check_writable(file)
    assert file.read_text() == "before"
    check_writable(Path(os.devnull))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name a file"):
        check_writable(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_what_must_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """A stand-in for the permissions, which a superuser does not have."""
    file = tmp_path / "file.json"
    if there:
        file.touch()
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    with pytest.raises(ValueError, match="cannot be written: name a place that can be"):
        check_writable(file)
    assert asked == [file if there else tmp_path]
