"""Balanced order, resumable, one row in memory at a time."""

import itertools
import tracemalloc
from collections import Counter

import pytest

from training.data.calls import ToolCall
from training.data.records import new_record, write_records
from training.data.sampling import RecordIndex

CLICK = ToolCall.computer_use("left_click", coordinate=[1, 1])
STRATA = {("a", "day"): 40, ("a", "page"): 2, ("b", "row"): 5}


def record(number, adapter="a", task="day", image="images/a.png"):
    metadata = {"task_type": task} if task else {}
    made = new_record(f"{adapter}/{task}/{number}", image, f"Click é {number}", [CLICK], metadata)
    return made.labelled(adapter) if adapter else made


@pytest.fixture
def path(tmp_path):
    records = [record(n, *key) for key, count in STRATA.items() for n in range(count)]
    write_records(tmp_path / "a.jsonl", records)
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(text.replace("\n", "\r\n\r\n", 3))
    return tmp_path / "a.jsonl"


def taken(index, count, **how):
    return list(itertools.islice(index.balanced(**how), count))


def test_adapters_and_their_tasks_come_equally_often(path):
    index = RecordIndex(path)
    assert (len(index), index.counts) == (47, STRATA)
    drawn = taken(index, 400, seed=0)
    assert Counter(r.adapter for r in drawn) == {"a": 200, "b": 200}
    assert Counter(r.task_type for r in drawn) == {"day": 100, "page": 100, "row": 200}
    for start in range(0, 400, 2):
        assert {r.adapter for r in drawn[start : start + 2]} == {"a", "b"}


def test_no_record_comes_twice_before_all_have_come(path):
    drawn = taken(RecordIndex(path), 400, seed=3)
    for key, count in STRATA.items():
        ids = [r.id for r in drawn if (r.adapter, r.task_type) == key]
        for start in range(0, len(ids) - count + 1, count):
            assert len(set(ids[start : start + count])) == count


def test_a_seed_gives_one_sequence(path):
    index = RecordIndex(path)
    whole = [r.id for r in taken(index, 120, seed=5)]
    assert [r.id for r in taken(RecordIndex(path), 120, seed=5)] == whole
    assert [r.id for r in taken(index, 120, seed=6)] != whole


def test_a_record_without_a_task_type_has_a_stratum_too(tmp_path):
    write_records(tmp_path / "a.jsonl", [record(1, task=None)])
    assert RecordIndex(tmp_path / "a.jsonl").counts == {("a", "(none)"): 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no record"),
        ("\n{\n", "line 2 is no record: it is not JSON"),
        ("[]\n", "line 1 is no record: a row must be"),
        (None, "line 1 has no adapter: label it"),
    ],
)
def test_files_that_cannot_be_trained_on_are_refused(tmp_path, text, reason):
    path = tmp_path / "a.jsonl"
    if text is None:
        write_records(path, [record(1, adapter=None)])
    else:
        path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        RecordIndex(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        RecordIndex(tmp_path / "none.jsonl")


def test_an_index_takes_a_few_bytes_a_record(tmp_path):
    path = tmp_path / "a.jsonl"
    write_records(path, (record(n, image="i" * 2000) for n in range(500)))
    tracemalloc.start()
    index = RecordIndex(path)
    drawn = sum(1 for _ in itertools.islice(index.balanced(seed=0), 500))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn == 500
    assert path.stat().st_size > 1_000_000
    assert used < 200_000
