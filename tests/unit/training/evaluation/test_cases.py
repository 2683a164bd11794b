"""Cases are read as they are, vacuous ones too, and chance picks the same ones again."""

import json
from collections import Counter

import pytest

from tests.support.evaluation import EXPECTED, EXPERTS, case_of, write_dataset
from training.evaluation.cases import HELD_OUT, check_known, read_cases, with_other_screens


def test_a_record_becomes_a_case(tmp_path):
    records = write_dataset(tmp_path, cases=1, tolerance=[1340, 722])
    first, second = read_cases(records)
    assert (first.id, first.expert, first.task_type) == ("calendar-0", "calendar", "click")
    assert (first.width, first.height) == (80, 60)
    assert first.expected == (EXPECTED,)
    assert first.target.startswith("<tool_call>")
    assert first.source == "calendar", "an imported image's folder is its source"
    assert first.vacuous, "such a case is reported, so it must be read"
    assert first.screen.is_file()
    assert second.expert == "claim-window"


def test_old_records_bring_their_system_prompt_and_no_line_end(tmp_path):
    records = write_dataset(tmp_path, ("calendar",), cases=1)
    row = json.loads(records.read_text())
    row["conversations"].insert(0, {"from": "system", "value": "You click."})
    row["conversations"][2]["value"] = "\n" + row["conversations"][2]["value"]
    row["image"], old = "0.png", row["image"]
    (tmp_path / old).rename(tmp_path / "0.png")
    records.write_text(json.dumps(row) + "\n")
    (case,) = read_cases(records)
    assert case.system == "You click."
    assert case.target.startswith("<tool_call>")
    assert case.source == "held_out", "other images have only their file's name"


def test_a_limit_takes_experts_in_turn_and_the_same_cases_again(tmp_path):
    records = write_dataset(tmp_path, cases=5)
    chosen = read_cases(records, limit=6, seed=1)
    assert Counter(case.expert for case in chosen) == dict.fromkeys(EXPERTS, 3)
    assert chosen == read_cases(records, limit=6, seed=1)
    assert {case.id for case in chosen} != {case.id for case in read_cases(records, limit=6)}
    assert len(read_cases(records, limit=99)) == 10


def test_the_source_that_a_record_states_comes_before_its_images_folder(tmp_path):
    """Several sources may have the same images, which lie in the folder of one of them."""
    records = write_dataset(tmp_path, ("calendar",), cases=1)
    row = json.loads(records.read_text())
    row["metadata"]["source"] = "rewritten"
    records.write_text(json.dumps(row) + "\n")
    (case,) = read_cases(records)
    assert case.source == "rewritten"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adapter": None}, "1 records have no adapter; run `molora data label`"),
        ({"id": 3}, "line 1: `id` and `image` must be strings"),
        ({"image": "images/none.png"}, "record calendar-0: the image is missing"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path, change, said):
    records = write_dataset(tmp_path, ("calendar",), cases=1)
    records.write_text(json.dumps({**json.loads(records.read_text()), **change}) + "\n")
    with pytest.raises(ValueError, match=said):
        read_cases(records)


def test_no_file_and_no_record(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        read_cases(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no record"):
        read_cases(tmp_path / "empty.jsonl")


def test_cases_of_an_expert_that_is_not_served():
    with pytest.raises(ValueError, match="name desktop, but the router knows calendar"):
        check_known([case_of("desktop"), case_of("calendar")], ["calendar"])


def test_other_screens_are_of_other_experts_and_all_used_once():
    cases = [case_of(expert, name=str(n)) for expert in ("a", "b", "c") for n in range(4)]
    others = with_other_screens(cases, seed=3)
    assert all(case.expert != other.expert for case, other in zip(cases, others, strict=True))
    assert sorted(other.id for other in others) == sorted(case.id for case in cases)
    assert others == with_other_screens(cases, seed=3)
    assert others != with_other_screens(cases, seed=4)


def test_an_expert_with_most_cases_keeps_some_of_its_own_screens():
    cases = [case_of("a", name=str(n)) for n in range(5)] + [case_of("b")]
    others = with_other_screens(cases, seed=0)
    kept = sum(case.expert == other.expert for case, other in zip(cases, others, strict=True))
    assert kept == 4


def test_the_default_records_are_there():
    assert HELD_OUT.is_file()
