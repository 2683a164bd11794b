"""The label rules of foreign records."""

import json

import pytest

from training.data.labels import judge, label_file, read_rules


def row(record_id="r", image="images/a.png", task_type=None, **parts):
    metadata = {} if task_type is None else {"task_type": task_type}
    return {"id": record_id, "image": image, "metadata": metadata, **parts}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (row(task_type="click_calendar_day"), "calendar"),
        (row(task_type="click_top_buttons"), "calendar"),
        (row(task_type="scroll-grid"), "claim-window"),
        (row(task_type="select-claim-form"), "claim-window"),
        (row(task_type="scroll-page-down"), "claim-window"),
        (row(task_type="scroll-to-date", image="images/claim_3.jpg"), "claim-window"),
        (row(task_type="scroll-to-date", image="images/chart-screen_1.png"), None),
        (row(task_type="scroll-to-date", image="images/claimhawk/chart-screen_1.png"), None),
        (row(record_id="edit-claim-window_12"), "claim-window"),
        (row(image="images/edit-claim-window_12.jpg"), "claim-window"),
        (row(image="images/edit-claim-window/chart-screen_1.png"), None),
        (row(image="images/screen_0012.png"), "calendar"),
        (row(image="images/my-calendar-3.png"), "calendar"),
        (row(image="images/chart-screen_1.png"), None),
        (row(image="calendar/17.png"), None),
        (row(task_type="select-user"), None),
        ({}, None),
        ({"id": 3, "image": ["a"], "metadata": "x"}, None),
    ],
)
def test_built_in_rules(value, label):
    assert judge(value).label == label
    assert not judge(value).contradicts


def test_the_records_own_adapter_decides():
    value = row(task_type="scroll-grid", image="images/screen_1.png", adapter="chart-screen")
    assert judge(value).label == "chart-screen"
    assert judge(value).rule == "the record's own adapter"


def test_the_first_matching_rule_is_named():
    value = row(task_type="scroll-grid", image="images/edit-claim-window_1.jpg")
    assert judge(value).rule == "task_type scroll-grid"


def test_a_contradiction_has_no_label():
    verdict = judge(row(task_type="scroll-grid", image="images/screen_1.png"))
    assert verdict.contradicts
    assert verdict.label is None
    assert verdict.labels == ("claim-window", "calendar")


RULES = """
rules:
  - {label: login-window, task_type: [select-user, enter-password]}
  - {label: chart-screen, image_name_starts: chart-screen_, id_contains: note}
"""


def written(tmp_path, text):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return path


def test_further_rules_need_all_their_conditions(tmp_path):
    rules = read_rules(written(tmp_path, RULES))
    assert judge(row(task_type="enter-password"), rules).label == "login-window"
    chart = row("note-1", "images/chart-screen_1.png")
    assert judge(chart, rules).label == "chart-screen"
    assert judge(row("x", "images/chart-screen_1.png"), rules).label is None


def test_a_further_rule_may_contradict_a_built_in_one(tmp_path):
    rules = read_rules(written(tmp_path, RULES))
    verdict = judge(row(task_type="select-user", image="images/screen_1.png"), rules)
    assert verdict.labels == ("calendar", "login-window")
    assert verdict.label is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rules: [", "is not YAML"),
        ("- label: x", "a list under `rules`"),
        ("rules: [{task_type: x}]", "rule 1 must be an object with a `label`"),
        ("rules: [{label: x}]", "rule 1 has the conditions"),
        ("rules: [{label: x, task_typ: y}]", "task_typ"),
        ("rules: [{label: x, task_type: 3}]", "a text or a list of texts"),
        ("rules: [{label: x, task_type: []}]", "a text or a list of texts"),
        ("rules: [{label: x, id_contains: ''}]", "a text or a list of texts"),
    ],
)
def test_broken_rule_files_are_refused(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        read_rules(written(tmp_path, text))


def test_labelling_a_file_keeps_rows_and_reports_the_others(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "deep" / "out.jsonl"
    rows = [
        row(task_type="click_calendar_day", conversations=[{"from": "human", "value": "é"}], odd=1),
        row(),
        row(task_type="scroll-grid", image="images/screen_1.png"),
        row(adapter="desktop"),
    ]
    source.write_text("\n".join([*map(json.dumps, rows), "{", "[]"]))
    result = label_file(source, out)
    assert result.labelled == {"calendar": 1, "desktop": 1}
    assert result.rules == {"task_type click_calendar_day": 1, "the record's own adapter": 1}
    assert result.unmatched == (2,)
    assert result.contradicting == {3: ("claim-window", "calendar")}
    assert [refusal.row for refusal in result.refused] == [5, 6]
    assert result.left_out == 4
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [{**rows[0], "adapter": "calendar"}, rows[3]]


def test_labelling_in_place_is_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row()))
    with pytest.raises(ValueError, match="choose another"):
        label_file(source, tmp_path / "." / "in.jsonl")
    assert source.read_text() == json.dumps(row())
