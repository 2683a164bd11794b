"""A work folder goes on with what it was begun with, and with nothing else."""

import pytest

from training.miniature.begun import check_begun

RECIPE = {"seed": 0, "steps": {"tower": 3}}


def test_the_same_goes_on(tmp_path):
    check_begun(tmp_path / "work", RECIPE)
    check_begun(tmp_path / "work", RECIPE)


@pytest.mark.parametrize(
    "other", [{**RECIPE, "seed": 1}, {"steps": RECIPE["steps"]}, {"seed": None, **RECIPE, "x": 1}]
)
def test_something_else_is_refused_by_name(tmp_path, other):
    check_begun(tmp_path, RECIPE)
    with pytest.raises(ValueError, match=r"begun with other (seed|x) .*give another --work"):
        check_begun(tmp_path, other)
    check_begun(tmp_path, RECIPE)
