"""Rows, their order, and what is refused before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from executor_service.model.prompt import PromptBuilder
from executor_service.model.screen import ScreenReader
from tests.support.tiny_run import EXPERTS, TinyRun, records, write_tiny_run
from training.conversations import Conversations, labelled_records, rows_of_step, seed_of
from training.data.records import Record, Turn, write_records
from training.stage2 import train_stage2


@pytest.fixture(scope="module")
def builder(tiny: TinyRun) -> PromptBuilder:
    return PromptBuilder(AutoTokenizer.from_pretrained(tiny.base))


def conversations(tiny: TinyRun, builder: PromptBuilder, rows: list[Record]) -> Conversations:
    systems = {name: f"You are the {name}." for name in EXPERTS}
    return Conversations(rows, tiny.records.parent, ScreenReader(tiny.base), builder, systems)


def test_a_row_is_the_prompt_that_is_served_and_the_answer_behind_it(
    tiny: TinyRun, builder: PromptBuilder
) -> None:
    rows = labelled_records(tiny.records, EXPERTS)
    made, record = conversations(tiny, builder, rows)[2], rows[2]
    served = builder.build(
        system="You are the scroller.",
        history=(),
        text=record.prompt,
        image_tokens=made.screen.image_tokens,
        trusted_system=True,
    )
    prompt = made.instruction.prompt
    answer = builder.encode_answer(record.turns[-1].value)
    assert made.expert == 1
    assert made.answer == (*answer, builder.end_of_turn)
    assert prompt.ids == (*served.ids, *answer)
    assert prompt.image_start == served.image_start
    start, end = made.instruction.feature_span
    spelled = tuple(builder.encode_literal(record.prompt))
    assert made.instruction.feature_ids[start:end] == spelled


def test_a_record_of_the_old_form_brings_its_system_prompt(
    tiny: TinyRun, builder: PromptBuilder
) -> None:
    [new, *_] = labelled_records(tiny.records, EXPERTS)
    human, gpt = new.turns
    old = dataclasses.replace(
        new, turns=(Turn("system", "Old rules."), human, Turn("gpt", "\n" + gpt.value))
    )
    both = conversations(tiny, builder, [new, old])
    assert both[0].answer == both[1].answer
    rules = tuple(builder.encode_literal("Old rules."))
    ids = both[1].instruction.prompt.ids
    assert any(ids[at : at + len(rules)] == rules for at in range(len(ids)))
    assert both[0].instruction.feature_ids == both[1].instruction.feature_ids


def test_marginals_are_the_labels_shares(tiny: TinyRun, builder: PromptBuilder) -> None:
    rows = labelled_records(tiny.records, EXPERTS)
    found = conversations(tiny, builder, [*rows[:2], rows[2]]).marginals()
    assert torch.allclose(found, torch.tensor([2 / 3, 1 / 3]))


class TestOrder:
    def test_every_record_once_in_every_pass(self) -> None:
        steps = [rows_of_step(10, step, 4, seed=3) for step in range(5)]
        places = [row for rows in steps for row in rows]
        assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))
        assert places[:10] != places[10:]

    def test_a_step_may_be_longer_than_the_data(self) -> None:
        rows = rows_of_step(3, 1, 8, seed=0)
        assert len(rows) == 8
        assert set(rows) == {0, 1, 2}

    def test_the_seed_decides(self) -> None:
        assert rows_of_step(50, 2, 8, seed=1) == rows_of_step(50, 2, 8, seed=1)
        assert rows_of_step(50, 2, 8, seed=1) != rows_of_step(50, 2, 8, seed=2)

    def test_close_numbers_give_far_seeds(self) -> None:
        seeds = {seed_of(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
        assert len(seeds) == 8000
        assert len({seed & 0xFFFFFFFF for seed in seeds}) > 7990
        assert all(0 <= seed < 2**63 for seed in seeds)


class TestRefused:
    def test_a_damaged_image_by_its_record(self, builder: PromptBuilder, tmp_path: Path) -> None:
        """Its header is whole, so it is not found before it is decoded."""
        tiny = write_tiny_run(tmp_path)
        image = tmp_path / "images" / "1.png"
        image.write_bytes(image.read_bytes()[:-20])
        rows = conversations(tiny, builder, labelled_records(tiny.records, EXPERTS))
        assert rows[0].expert == 0
        with pytest.raises(
            ValueError, match=r"record 1-0 with images/1.png cannot be .*: The screen is damaged"
        ):
            rows[2]

    def test_faults_that_a_run_would_meet_late_before_its_first_step(self, tmp_path: Path) -> None:
        """And once they are mended the run begins, where it was refused."""
        tiny, out = write_tiny_run(tmp_path), tmp_path / "run"
        *first, last = labelled_records(tiny.records, EXPERTS)
        image = tmp_path / last.image
        whole = image.read_bytes()
        faulty = dataclasses.replace(last, metadata={"changed_from": "screen 7"})
        where = f"{last.id} with {last.image}"
        write_records(tiny.records, [*first, faulty])
        with pytest.raises(ValueError, match=rf"1 of 12 .* {where}: .*changed_from is no sha256"):
            train_stage2(tiny.config(out, steps=1))
        write_records(tiny.records, [*first, last])
        image.write_bytes(whole[:20])
        with pytest.raises(ValueError, match=r"2 of 12 .* 5-0 with images/5.png: .*cannot be read"):
            train_stage2(tiny.config(out, steps=1))
        image.write_bytes(whole)
        assert train_stage2(tiny.config(out, steps=1)).left_out == 0

    def write(self, tmp_path: Path, rows: list[Record]) -> Path:
        write_records(tmp_path / "rows.jsonl", rows)
        return tmp_path / "rows.jsonl"

    def test_a_record_of_another_expert(self, tmp_path: Path) -> None:
        rows = [row.labelled("stranger") for row in records(tmp_path)]
        with pytest.raises(ValueError, match="stranger, which is none of clicker, scroller"):
            labelled_records(self.write(tmp_path, rows), EXPERTS)

    def test_a_record_without_a_label(self, tmp_path: Path) -> None:
        rows = [dataclasses.replace(row, adapter=None) for row in records(tmp_path)]
        with pytest.raises(ValueError, match="12 records have no adapter"):
            labelled_records(self.write(tmp_path, rows), EXPERTS)

    def test_a_row_that_is_no_record(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, list(records(tmp_path)))
        path.write_text(path.read_text() + '{"id": 3}\n')
        with pytest.raises(ValueError, match="1 rows that are no records, the first in line 13"):
            labelled_records(path, EXPERTS)

    def test_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "rows.jsonl").write_text("\n")
        with pytest.raises(ValueError, match="holds no record"):
            labelled_records(tmp_path / "rows.jsonl", EXPERTS)
