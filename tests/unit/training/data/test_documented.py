"""What docs/DATA.md shows is read as it says."""

import json
import re
from pathlib import Path

from training.data.labels import judge, read_rules
from training.data.records import read_records

TEXT = (Path(__file__).resolve().parents[4] / "docs/DATA.md").read_text(encoding="utf-8")


def shown(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_record(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(json.loads(shown("json")[0])) + "\n", encoding="utf-8")
    [record] = read_records(path).records
    assert (record.adapter, record.prompt) == ("calendar", "Click December 3 in the calendar")
    assert record.calls[0].arguments == {"action": "left_click", "coordinate": [498, 385]}
    assert (record.task_type, record.tolerance) == ("click_calendar_day", (20.0, 24.0))


def test_the_rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(shown("yaml")[0], encoding="utf-8")
    rules = read_rules(path)
    assert judge({"id": "1", "image": "images/login_7.png"}, rules).label == "login-window"
    row = {"id": "a-claim", "image": "1.png", "metadata": {"task_type": "scroll-grid"}}
    assert judge(row, rules).label == "claim-window"


def test_the_expert_has_the_fields_that_are_read():
    assert set(json.loads(shown("json")[1].replace("…", ""))) == {
        "label", "system_prompt", "task_types", "base_digest",
    }  # fmt: skip
