"""Records in both forms and the user's test files."""

import json

import pytest

from training.data.calls import ToolCall, format_calls
from training.data.cases import read_tests
from training.data.records import (
    new_record,
    read_records,
    read_tolerance,
    record_from_json,
    write_records,
)

CLICK = ToolCall.computer_use("left_click", coordinate=[498, 385])
OLD = {
    "id": "c_1",
    "image": "images/screen_1.png",
    "conversations": [
        {"from": "system", "value": "You click."},
        {"from": "human", "value": "<image>\nClick December 3 in the calendar"},
        {"from": "gpt", "value": "\n" + format_calls([CLICK])},
    ],
    "metadata": {"task_type": "click_calendar_day", "real_coords": None, "tolerance": 12},
}
NEW = {**OLD, "conversations": OLD["conversations"][1:], "adapter": "calendar"}


def changed(**parts):
    return {**OLD, **parts}


def test_both_forms_are_read_and_written_back_unchanged(tmp_path):
    source, copy = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    rows = [OLD, NEW, changed(id="\u00e9\ud800")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_records(source)
    assert found.refused == ()
    old, new, _ = found.records
    assert (old.system, new.system) == ("You click.", None)
    assert old.prompt == new.prompt == "Click December 3 in the calendar"
    assert old.calls == new.calls == (CLICK,)
    assert (old.adapter, new.adapter) == (None, "calendar")
    assert old.task_type == "click_calendar_day"
    assert old.tolerance == (12, 12)
    assert write_records(copy, found.records) == 3
    assert [json.loads(line) for line in copy.read_text().splitlines()] == rows
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_with_byte_order_mark_and_blank_lines_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OLD).encode() + b"\r\n\r\n")
    assert len(read_records(path).records) == 1


def test_bad_rows_are_counted_and_cost_only_themselves(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b"{", json.dumps(NEW).encode(), b'{"id": "\xff"}', b"[]", b"9" * 5000]
    path.write_bytes(b"\n".join(lines))
    found = read_records(path)
    assert len(found.records) == 1
    assert [refusal.row for refusal in found.refused] == [1, 3, 4, 5]
    assert found.refused[2].reason == "a row must be a JSON object"


HUMAN, GPT = NEW["conversations"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (changed(id=None), "`id` and `image`"),
        (changed(image=["a.png", "b.png"]), "`id` and `image`"),
        (changed(image="/etc/a.png"), "one relative path"),
        (changed(image="../a.png"), "one relative path"),
        (changed(image=""), "one relative path"),
        (changed(metadata=[]), "`metadata` an object"),
        (changed(adapter=3), "`adapter`"),
        (changed(conversations=[]), "human, gpt"),
        (changed(conversations=[HUMAN, GPT, HUMAN, GPT]), "human, gpt"),
        (changed(conversations=[{"from": "human"}, GPT]), "`from` and `value`"),
        (changed(conversations=[{**HUMAN, "value": "Click"}, GPT]), "must begin with `<image>`"),
        (changed(conversations=[HUMAN, {**GPT, "value": "Action: x"}]), "text beside"),
        (changed(metadata={"tolerance": -1}), "`tolerance`"),
    ],
)
def test_broken_rows_are_refused_with_the_part_that_breaks(row, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        record_from_json(row)
    assert "Click December" not in str(caught.value)


@pytest.mark.parametrize("value", [True, "10", [1], [1, 2, 3], [1, -1], float("nan")])
def test_strange_tolerances_are_refused(value):
    with pytest.raises(ValueError, match="`tolerance`"):
        read_tolerance(value)


def test_missing_files_are_refused(tmp_path):
    for read in (read_records, read_tests):
        with pytest.raises(ValueError, match="is no file"):
            read(tmp_path / "absent")


def case(**parts):
    return {
        "test_id": "t1",
        "screenshot": "images/a.png",
        "prompt": "Wait",
        "expected_action": {"name": CLICK.name, "arguments": CLICK.arguments},
        "tolerance": [10, 20],
        "metadata": {"real_coords": None, "task_type": "x"},
        **parts,
    }


def read_one(tmp_path, value):
    path = tmp_path / "test.json"
    path.write_text(json.dumps([value]))
    found = read_tests(path)
    return found.records[0] if found.records else found.refused[0].reason


def test_a_case_becomes_a_record(tmp_path):
    record = read_one(tmp_path, case())
    assert (record.id, record.image, record.prompt) == ("t1", "images/a.png", "Wait")
    assert record.calls == (CLICK,)
    assert record.tolerance == (10, 20)
    assert record.metadata["real_coords"] is None


def test_the_quirks_of_test_files_are_accepted(tmp_path):
    box = {"bbox_2d": [1, 2, 3, 4], "element": "name"}
    further = [
        {"action": "wait", "duration": 3.0},
        {"name": "get_bbox", "arguments": box},
        {"name": "text_verification", "arguments": {"regions": [box, box]}},
    ]
    value = case(
        test_id=7, prompt="<image>\nWait", tolerance=10, metadata={"additional_tool_calls": further}
    )
    record = read_one(tmp_path, value)
    assert record.id == "7"
    assert record.prompt == "Wait"
    assert record.tolerance == (10, 10)
    fixed = {"bbox_2d": [1, 2, 3, 4], "label": "name"}
    assert record.calls == (
        CLICK,
        ToolCall.computer_use("wait", time=3.0),
        ToolCall("get_bbox", fixed),
        ToolCall("text_verification", {"regions": [fixed, fixed]}),
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "JSON object"),
        (case(prompt=None), "must be texts"),
        (case(metadata=[]), "`metadata`"),
        (case(metadata={"additional_tool_calls": {"name": "x"}}), "must be a list"),
        (case(expected_action=None), "a call must be an object"),
        (case(expected_action={"action": "tap"}), "action is unknown"),
    ],
)
def test_broken_cases_are_refused(tmp_path, value, reason):
    assert reason in read_one(tmp_path, value)


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("{}", "is no array")])
def test_files_that_hold_no_cases_are_refused(tmp_path, text, reason):
    path = tmp_path / "test.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_tests(path)


def test_a_new_record_has_the_new_form():
    record = new_record("i", "images/a.png", "Click", [CLICK], {})
    assert [turn.role for turn in record.turns] == ["human", "gpt"]
    assert "adapter" not in record.to_json()
    assert record.labelled("calendar").to_json()["adapter"] == "calendar"
