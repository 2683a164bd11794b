"""Which paths an administrator may load from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor_service.engine.locations import check_name, resolve_adapter
from service_chassis.errors import FailedPrecondition, InvalidArgument, NotFound

FILES = ("adapter_config.json", "adapter_model.safetensors")


def write_adapter(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in FILES:
        (directory / name).write_bytes(b"x")
    return directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "experts" / "calendar" / "adapter")
    return tmp_path / "experts"


@pytest.mark.parametrize("name", ["a", "calendar", "claim-window", "7b", "x" * 63])
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "A",
        "a_b",
        "a b",
        "../x",
        "/etc",
        "a\0b",
        "a%2f",
        "\u0430",
        "a\n",
        "x" * 64,
        "x" * 300,
    ],
)
def test_bad_names(name):
    with pytest.raises(InvalidArgument) as refused:
        check_name(name)
    assert refused.value.metadata == {"field": "name"}


def test_an_adapter_below_the_root_is_found_in_both_layouts(root):
    flat = write_adapter(root / "deep" / "flat")
    assert resolve_adapter(root, "calendar") == root / "calendar"
    assert resolve_adapter(root, "deep/flat") == flat


def test_a_link_that_stays_below_the_root_is_followed(root):
    (root / "current").symlink_to(root / "calendar")
    assert resolve_adapter(root, "current") == root / "calendar"


def test_without_a_root_nothing_can_be_loaded():
    with pytest.raises(FailedPrecondition):
        resolve_adapter(None, "calendar")


@pytest.mark.parametrize("path", ["", ".", "..", "../x", "a/../../x", "/etc", "a\0b"])
def test_paths_outside_are_refused(root, path):
    with pytest.raises(InvalidArgument) as refused:
        resolve_adapter(root, path)
    assert refused.value.reason == "BAD_ADAPTER_PATH"


@pytest.mark.parametrize("path", ["nothing", "calendar/nothing", "x" * 255])
def test_what_is_not_there_is_not_found(root, path):
    with pytest.raises(NotFound):
        resolve_adapter(root, path)


def test_a_name_longer_than_the_file_system_allows_is_refused(root):
    with pytest.raises(InvalidArgument):
        resolve_adapter(root, "x" * 4000)


def test_a_link_out_of_the_root_is_refused(root, tmp_path):
    outside = write_adapter(tmp_path / "outside")
    (root / "linked").symlink_to(outside)
    write_adapter(root / "files")
    (root / "files" / FILES[0]).unlink()
    (root / "files" / FILES[0]).symlink_to(outside / FILES[0])
    for path in ("linked", "files"):
        with pytest.raises(InvalidArgument):
            resolve_adapter(root, path)


def test_a_link_to_itself_is_refused(root):
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(InvalidArgument):
        resolve_adapter(root, "loop")


@pytest.mark.parametrize("kind", ["fifo", "directory", "hard link"])
def test_what_is_not_a_plain_file_is_refused_without_opening_it(root, tmp_path, kind):
    target = write_adapter(root / "odd") / FILES[1]
    target.unlink()
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "directory":
        target.mkdir()
    else:
        secret = tmp_path / "secret"
        secret.write_bytes(b"y")
        os.link(secret, target)
    with pytest.raises(InvalidArgument):
        resolve_adapter(root, "odd")
