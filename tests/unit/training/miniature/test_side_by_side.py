"""Steps at once, each on cores of its own."""

import os
from functools import partial

import pytest

from training.miniature.side_by_side import core_groups, side_by_side

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system has no numbers for its cores"
)


def note(folder, name):
    (folder / name).write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))
    if name == "bad":
        raise ValueError("this one fails")


@needs_affinity
def test_cores_are_grouped_without_remainder():
    mine = sorted(os.sched_getaffinity(0))
    assert core_groups(1) == [[core] for core in mine]
    assert core_groups(len(mine)) == [mine]
    assert core_groups(len(mine) + 1) == []


@needs_affinity
def test_every_step_runs_on_one_of_the_groups(tmp_path):
    groups = core_groups(1)[:2]
    side_by_side(partial(note, tmp_path), ["a", "b", "c"], groups)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(kept) == {"a", "b", "c"}
    assert set(kept.values()) <= {str(core) for (core,) in groups}


@needs_affinity
def test_what_a_step_raises_is_raised(tmp_path):
    with pytest.raises(ValueError, match="this one fails"):
        side_by_side(partial(note, tmp_path), ["a", "bad"], core_groups(1)[:1])
