import os

import pytest

from service_chassis.watched import Watched


def watch(path):
    def read():
        text = path.read_text()
        if text == "bad":
            raise ValueError("secret text")
        return [text]

    return Watched("thing", [path], read)


def write(path, text):
    """Replaces the file: its inode is new even where the clock stands still."""
    draft = path.with_name("draft")
    draft.write_text(text)
    os.replace(draft, path)


def test_the_same_object_until_the_file_changes(tmp_path, logs):
    path = tmp_path / "file"
    path.write_text("one")
    watched = watch(path)
    first = watched.current()
    assert first == ["one"]
    assert watched.current() is first
    write(path, "two")
    assert watched.current() == ["two"]
    assert [(entry["event"], entry["what"]) for entry in logs] == [
        ("changed files are in force", "thing")
    ]


@pytest.mark.parametrize("spoil", [lambda path: write(path, "bad"), lambda path: path.unlink()])
def test_what_cannot_be_used_changes_nothing_and_is_said_once(tmp_path, logs, spoil):
    path = tmp_path / "file"
    path.write_text("one")
    watched = watch(path)
    spoil(path)
    assert [watched.current() for _ in range(3)] == [["one"]] * 3
    (entry,) = logs
    assert entry["log_level"] == "error"
    assert "secret text" not in str(entry)
    assert str(path) not in str(entry)
    write(path, "two")
    assert watched.current() == ["two"]


def test_what_cannot_be_used_at_first_is_refused(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        watch(tmp_path / "none")
