"""What is learnt from and what is measured on are different screens, of all the experts there."""

from __future__ import annotations

import dataclasses

import pytest

from training.data.records import read_labelled
from training.miniature.experts import LEFT_OUT
from training.study.screens import Sizes, draw_sets, experts_in

FEW = Sizes(images=2, unseen=1, lessons=1, cases=2, tasks=2)


def write_experts(folder, *names):
    for name in names:
        (folder / name / "adapter").mkdir(parents=True)
        (folder / name / "adapter" / "adapter_config.json").write_text("{}")
        (folder / name / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_the_experts_are_those_of_the_folder(tmp_path):
    folder = write_experts(tmp_path, "login-window", "calendar")
    assert experts_in(folder) == ("calendar", "login-window")
    write_experts(tmp_path, "ledger")
    with pytest.raises(ValueError, match="holds calendar, ledger, login-window: give a folder"):
        experts_in(folder)


def test_no_screen_is_in_two_sets(tmp_path):
    sets = draw_sets(tmp_path, ("calendar", "login-window"), FEW)
    seen = {}
    for name, path in vars(sets).items():
        records = read_labelled(path)
        assert {record.adapter for record in records} == {"calendar", "login-window"}
        assert not {record.task_type for record in records} & LEFT_OUT
        seen[name] = {(path.parent / record.image).read_bytes() for record in records}
    # Of the first set's four one is a cut-out that shows nothing which is asked for.
    assert [len(images) for images in seen.values()] == [3, 2, 2, 4, 4]
    assert len(set().union(*seen.values())) == 15


def test_more_cases_begin_with_the_same_ones_and_leave_the_rest(tmp_path):
    few = draw_sets(tmp_path, ("calendar",), FEW)
    more = draw_sets(tmp_path, ("calendar",), dataclasses.replace(FEW, cases=3))
    assert more.held_out != few.held_out
    assert (more.learnt, more.unseen, more.lessons) == (few.learnt, few.unseen, few.lessons)
    for name in ("held_out", "fresh_cases"):
        asked, before = (read_labelled(getattr(sets, name)) for sets in (more, few))
        assert asked[:2] == before
        assert len(asked) == 3


def test_what_was_drawn_stays_and_what_was_half_drawn_goes(tmp_path):
    sets = draw_sets(tmp_path, ("calendar",), FEW)
    before = sets.learnt.stat().st_mtime_ns
    sets.unseen.unlink()
    assert draw_sets(tmp_path, ("calendar",), FEW) == sets
    assert sets.learnt.stat().st_mtime_ns == before
    assert sets.unseen.exists()
