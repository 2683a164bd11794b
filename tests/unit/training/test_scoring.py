"""The scoring rule."""

import pytest

from training.data.calls import ToolCall, format_calls
from training.scoring import (
    Rate,
    default_tolerance,
    is_vacuous,
    matches,
    parse_calls,
    wilson_interval,
)

use = ToolCall.computer_use
CLICK = use("left_click", coordinate=[498, 385])
SCROLL = use("scroll", coordinate=[500, 500], pixels=300)
STILL = use("scroll", coordinate=[500, 500], pixels=0)
BOX = ToolCall("get_bbox", {"bbox_2d": [100, 100, 200, 200], "label": "x"})
REGIONS = ToolCall(
    "text_verification",
    {"regions": [{"bbox_2d": [0, 0, 9, 9], "label": "a"}, {"bbox_2d": [9, 9, 99, 99]}]},
)


@pytest.mark.parametrize(
    ("expected", "got", "passes"),
    [
        (CLICK, use("left_click", coordinate=[508, 375]), True),
        (CLICK, use("left_click", coordinate=[509, 385]), False),
        (CLICK, use("left_click", coordinate=[498, 396]), False),
        (CLICK, use("double_click", coordinate=[498, 385]), False),
        (CLICK, use("left_click", coordinate=[498, 385], extra=1), True),
        (CLICK, use("left_click"), False),
        (CLICK, use("left_click", coordinate=[498]), False),
        (CLICK, use("left_click", coordinate="498"), False),
        (CLICK, use("left_click", coordinate=[None, 385]), False),
        (CLICK, use("left_click", coordinate=[True, 385]), False),
        (CLICK, use("left_click", coordinate=[498.4, 385]), True),
        (CLICK, use("left_click", coordinate=[10**400, 385]), False),
        (CLICK, use("left_click", coordinate=[float("nan"), 385]), False),
        (CLICK, ToolCall("left_click", {"coordinate": [498, 385]}), False),
        (SCROLL, use("scroll", coordinate=[600, 506], pixels=360), True),
        (SCROLL, use("scroll", coordinate=[400, 494], pixels=240), True),
        (SCROLL, use("scroll", coordinate=[500, 507], pixels=300), False),
        (SCROLL, use("scroll", coordinate=[601, 500], pixels=300), False),
        (SCROLL, use("scroll", coordinate=[500, 500], pixels=361), False),
        (SCROLL, use("scroll", coordinate=[500, 500], pixels=-300), False),
        (SCROLL, use("hscroll", coordinate=[500, 500], pixels=300), False),
        (SCROLL, use("scroll", coordinate=[500, 500]), False),
        (BOX, ToolCall("get_bbox", {"bbox_2d": [150, 50, 250, 150]}), True),
        (BOX, ToolCall("get_bbox", {"bbox_2d": [151, 100, 200, 200]}), False),
        (BOX, ToolCall("get_bbox", {"bbox_2d": [100, 100, 200, 251]}), False),
        (REGIONS, REGIONS, True),
        (REGIONS, ToolCall("text_verification", {"regions": [{"bbox_2d": [0, 0, 9, 9]}]}), False),
        (REGIONS, ToolCall("text_verification", {"regions": [1, 2]}), False),
        (use("key", keys=["ctrl", "a"]), use("key", keys=["ctrl", "a"]), True),
        (use("key", keys=["ctrl", "a"]), use("key", keys=["a", "ctrl"]), False),
        (use("type", text="abc"), use("type", text="abc"), True),
        (use("type", text="abc"), use("type", text="abc "), False),
        (use("wait", time=3.0), use("wait", time=3.5), True),
        (use("wait", time=3.0), use("wait", time=2.4), False),
        (use("wait", time=3.0), use("wait", duration=3.0), False),
        (use("terminate", status="success"), use("terminate", status="failure"), False),
        (STILL, STILL, True),
        (STILL, use("scroll", coordinate=[500, 500], pixels=1), False),
    ],
)  # fmt: skip
def test_one_call(expected, got, passes):
    assert matches([expected], [got]) is passes


def test_the_cases_own_tolerance_counts_for_each_axis():
    got = [use("left_click", coordinate=[508, 391])]
    assert not matches([CLICK], got, (10, 5))
    assert not matches([CLICK], got, (9, 6))
    assert matches([CLICK], got, (10, 6))
    assert not matches([CLICK], got, (0, 0))


def test_calls_match_in_order_and_none_may_be_missing_or_too_many():
    typed = use("type", text="secret")
    assert matches([CLICK, typed], [CLICK, typed])
    assert not matches([CLICK, typed], [typed, CLICK])
    assert not matches([CLICK, typed], [CLICK])
    assert not matches([CLICK], [CLICK, typed])
    assert not matches([CLICK], [])


def test_a_case_that_expects_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        matches([], [])


def test_default_tolerances():
    assert default_tolerance(CLICK) == (10, 10)
    assert default_tolerance(SCROLL) == default_tolerance(use("hscroll")) == (100, 6)
    assert default_tolerance(BOX) == default_tolerance(REGIONS) == (50, 50)


def test_answers_are_parsed_whole_or_not_at_all():
    text = format_calls([CLICK, SCROLL])
    assert parse_calls(text) == (CLICK, SCROLL)
    assert parse_calls("I will click.\n" + text) == (CLICK, SCROLL)
    assert parse_calls(text[:-3]) == ()
    assert parse_calls("<tool_call>\n{oops}\n</tool_call>" + text) == ()
    assert parse_calls("left_click 498 385") == ()


@pytest.mark.parametrize(
    ("call", "tolerance", "vacuous"),
    [
        (CLICK, (1340, 722), True),
        (CLICK, (500, 500), True),
        (CLICK, (250, 500), True),
        (CLICK, (249, 500), False),
        (CLICK, (10, 10), False),
        (CLICK, (470, 14), False),
        (CLICK, None, False),
        (BOX, (1340, 722), True),
        (use("wait", time=3.0), (1340, 722), False),
    ],
)
def test_vacuous_tolerances(call, tolerance, vacuous):
    assert is_vacuous([call], tolerance) is vacuous


@pytest.mark.parametrize(
    ("passed", "n", "low", "high"),
    [
        (50, 100, 0.4038, 0.5962),
        (95, 100, 0.8882, 0.9785),
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
    ],
)
def test_wilson_interval(passed, n, low, high):
    assert wilson_interval(passed, n) == pytest.approx((low, high), abs=1e-4)


def test_a_rate_carries_its_interval():
    rate = Rate(95, 100)
    assert rate.value == 0.95
    assert rate.interval == wilson_interval(95, 100)
    for passed, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no rate"):
            Rate(passed, n)
