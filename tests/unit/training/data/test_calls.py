"""Tool calls as text."""

import pytest

from training.data.calls import ACTIONS, ToolCall, format_calls, read_calls

CLICK = ToolCall.computer_use("left_click", coordinate=[498, 385])
TYPE = ToolCall.computer_use("type", text="a </tool_call> in a text, <tool_call> too")


def test_a_call_is_written_as_the_records_write_it():
    assert format_calls([CLICK]) == (
        '<tool_call>\n{"name": "computer_use", "arguments": '
        '{"action": "left_click", "coordinate": [498, 385]}}\n</tool_call>'
    )


def test_several_calls_survive_the_round_trip_even_with_tags_in_their_text():
    assert read_calls("\n" + format_calls([CLICK, TYPE])) == (CLICK, TYPE)


def test_unknown_arguments_pass_through():
    call = ToolCall.computer_use("left_click", coordinate=[1, 2], hold=["shift"])
    assert read_calls(format_calls([call])) == (call,)


def test_an_argument_that_is_null_is_none():
    call = ToolCall.computer_use("wait", time=3.0)
    given = ToolCall.computer_use("wait", time=3.0, coordinate=None)
    assert read_calls(format_calls([given])) == (call,)
    with pytest.raises(ValueError, match="needs `time`"):
        read_calls(format_calls([ToolCall.computer_use("wait", time=None)]))


def test_every_action_of_the_table_is_known():
    assert {
        "left_click", "right_click", "middle_click", "double_click", "triple_click", "mouse_move",
        "left_click_drag", "scroll", "hscroll", "key", "type", "ocr", "answer", "wait",
        "terminate",
    } == ACTIONS  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        ToolCall.computer_use("hscroll", coordinate=[0, 1000], pixels=-300),
        ToolCall.computer_use("key", keys=["ctrl", "a"]),
        ToolCall.computer_use("wait", time=3.0),
        ToolCall.computer_use("terminate", status="success"),
        ToolCall("get_bbox", {"bbox_2d": [1, 2, 3, 4], "label": "x"}),
        ToolCall("text_verification", {"regions": [{"bbox_2d": [1, 2, 3, 4]}] * 2}),
    ],
)
def test_good_calls_are_read(call):
    assert read_calls(format_calls([call])) == (call,)
    assert call.action in ACTIONS | {"get_bbox", "text_verification"}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (ToolCall("browser", {}), "tool is unknown"),
        (ToolCall.computer_use("tap", coordinate=[1, 2]), "action is unknown"),
        (ToolCall.computer_use("left_click"), "needs `coordinate`"),
        (ToolCall.computer_use("left_click", coordinate=[1, 1001]), "needs `coordinate`"),
        (ToolCall.computer_use("left_click", coordinate=[1.0, 2]), "needs `coordinate`"),
        (ToolCall.computer_use("left_click", coordinate=[True, 2]), "needs `coordinate`"),
        (ToolCall.computer_use("scroll", coordinate=[1, 2]), "scroll needs `pixels`"),
        (ToolCall.computer_use("scroll", coordinate=[1, 2], pixels="300"), "needs `pixels`"),
        (ToolCall.computer_use("key", keys="ctrl"), "key needs `keys`"),
        (ToolCall.computer_use("wait", duration=3), "wait needs `time`"),
        (ToolCall.computer_use("terminate", status="ok"), "needs `status`"),
        (ToolCall("get_bbox", {"bbox_2d": [1, 2, 3]}), "bbox_2d"),
        (ToolCall("text_verification", {"regions": []}), "list of two"),
    ],
)
def test_calls_outside_the_table_are_refused(call, reason):
    with pytest.raises(ValueError, match=reason):
        read_calls(format_calls([call]))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no <tool_call> block"),
        ("Action: click\n" + format_calls([CLICK]), "text beside"),
        ("<tool_call>\nclick\n</tool_call>", "one JSON object"),
        ('<tool_call>\n{"name": "computer_use"}\n</tool_call>', "must be an object"),
        ("<tool_call>\n[1, 2]\n</tool_call>", "must be an object"),
        (format_calls([CLICK]).removesuffix("</tool_call>"), "must be closed"),
        ("<tool_call>" + "[" * 100_000, "one JSON object"),
        ("<tool_call>" + "9" * 5_000, "one JSON object"),
    ],
)
def test_texts_that_are_no_calls_are_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        read_calls(text)
