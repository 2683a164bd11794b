"""Steps that ended are not done again; a folder belongs to one study."""

import pytest

from training.study.kept import Kept


def test_a_step_is_done_once(tmp_path):
    done = []
    for _ in range(2):
        kept = Kept(tmp_path, {"seeds": (0, 1)})
        found = kept.step("stage 1 seed 0", lambda: done.append(1) or {"accuracy": 0.5})
        assert found == {"accuracy": 0.5}
    assert done == [1]
    assert list(kept.seconds()) == ["stage 1 seed 0"]


def test_a_step_that_failed_is_done_again(tmp_path):
    kept = Kept(tmp_path, {})
    with pytest.raises(ZeroDivisionError):
        kept.step("half", lambda: 1 / 0)
    assert kept.step("half", lambda: 0.5) == 0.5


def test_another_study_is_refused(tmp_path):
    Kept(tmp_path, {"model": "a", "steps": 3})
    with pytest.raises(ValueError, match="holds a study with other model, seeds; give another"):
        Kept(tmp_path, {"model": "b", "steps": 3, "seeds": [0]})
