import pytest

from molora_client import ToolCall, ToolCallError, parse_tool_calls, to_pixels

LOGIN = """
<tool_call>
{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [498, 385]}}
</tool_call>
<tool_call>
{"name": "computer_use", "arguments": {"action": "type", "text": "a</tool_call>b", "odd": 1}}
</tool_call>"""


def test_several_calls_in_order_with_unknown_arguments():
    click, typing = parse_tool_calls(LOGIN)
    assert (click.action, click.coordinate) == ("left_click", (498, 385))
    assert typing.arguments == {"action": "type", "text": "a</tool_call>b", "odd": 1}
    assert typing.coordinate is None


def test_text_without_calls():
    assert parse_tool_calls("I cannot see it.") == ()
    assert parse_tool_calls("") == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('<tool_call>\n{"name": "computer_use", "arguments": {}}', "not closed"),
        ("<tool_call>\n{secret\n</tool_call>", "not JSON"),
        ("<tool_call>" + "[" * 100_000, "not JSON"),
        ('<tool_call>["secret"]</tool_call>', "not {name, arguments}"),
        ('<tool_call>{"name": "secret"}</tool_call>', "not {name, arguments}"),
        (LOGIN + "<tool_call>", "tool call 3"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_quotes_nothing(text, problem):
    with pytest.raises(ToolCallError, match=problem) as caught:
        parse_tool_calls(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [None, [1], [1, 2, 3], "ab", [1.5, 2], [True, 2], {"x": 1}])
def test_a_coordinate_is_two_integers_or_none(value):
    assert ToolCall("computer_use", {"coordinate": value}).coordinate is None


@pytest.mark.parametrize(
    ("coordinate", "size", "pixel"),
    [
        ((498, 385), (225, 208), (112, 80)),
        ((489, 352), (1155, 853), (565, 300)),
        ((0, 0), (225, 208), (0, 0)),
        ((1000, 1000), (225, 208), (224, 207)),
    ],
)
def test_each_axis_has_its_own_scale(coordinate, size, pixel):
    assert to_pixels(coordinate, width=size[0], height=size[1]) == pixel


def test_coordinates_beyond_the_screen_are_refused():
    with pytest.raises(ValueError, match="1001"):
        to_pixels((1001, 0), width=10, height=10)
