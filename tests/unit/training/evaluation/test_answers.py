"""The same question is not asked twice, and another one is not taken for it."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from molora_client import AsyncMolora
from tests.support.evaluation import EXPECTED, case_of, knowing, write_dataset
from tests.support.stub_services import running_stub
from training.data.calls import format_calls
from training.evaluation.answers import AnswerBook, Said, question_of
from training.evaluation.cases import read_cases
from training.evaluation.run import run_cases


@pytest.fixture
def case(tmp_path):
    screen = tmp_path / "screen.png"
    screen.write_bytes(b"pixels")
    return case_of("calendar", screen=screen)


def test_what_is_said_is_scored_as_an_answer_to_the_case(case):
    right = Said(format_calls([EXPECTED]), False, 0.5).on(case)
    assert (right.right, right.calls, right.loss) == (True, (EXPECTED,), 0.5)
    wrong = Said("no idea", True, 2.0).on(case)
    assert (wrong.right, wrong.calls, wrong.cut) == (False, (), True)


def test_a_question_is_all_that_an_answer_depends_on(case, tmp_path):
    gates = {"calendar": 0.75, "desktop": 0.25}
    asked = question_of(case, gates, {}, "set", 96)
    other = tmp_path / "other.png"
    other.write_bytes(b"others")
    assert {
        question_of(changed, *given)
        for changed, *given in (
            (dataclasses.replace(case, prompt="another"), gates, {}, "set", 96),
            (dataclasses.replace(case, system="another"), gates, {}, "set", 96),
            (dataclasses.replace(case, target="another"), gates, {}, "set", 96),
            (dataclasses.replace(case, screen=other), gates, {}, "set", 96),
            (case, {"calendar": 1.0}, {}, "set", 96),
            (case, {}, {}, "set", 96),
            (case, gates, {0: gates}, "set", 96),
            (case, gates, {0: {"calendar": 1.0}}, "set", 96),
            (case, gates, {}, "other set", 96),
            (case, gates, {}, "set", 7),
        )
    }.isdisjoint({asked})
    # What is zero, and what a case is called, changes nothing.
    renamed = dataclasses.replace(case, id="x", expert="desktop")
    zeros = {"desktop": 0.25, "calendar": 0.75, "ledger": 0.0}
    assert question_of(renamed, zeros, {}, "set", 96) == asked


def test_a_book_on_disk_outlives_its_process(tmp_path):
    path = tmp_path / "answers.jsonl"
    book = AnswerBook(path)
    book.add("one", Said("text", False, 0.25))
    with path.open("a") as file:
        file.write('{"question": "two", "te')  # killed while it wrote
    again = AnswerBook(path)
    assert len(again) == 1
    assert again.find("one") == Said("text", False, 0.25)
    assert again.find("two") is None
    again.add("three", Said("more", True, 0.5))
    assert AnswerBook(path).find("three") == Said("more", True, 0.5)
    assert json.loads(path.read_text().splitlines()[0])["question"] == "one"


def test_a_second_run_asks_the_router_alone(tmp_path):
    cases, book = read_cases(write_dataset(tmp_path)), AnswerBook()

    async def run(stub):
        async with AsyncMolora(stub.address, stub.address) as client:
            return await run_cases(client, cases, max_new_tokens=7, book=book)

    with running_stub() as stub:
        knowing(stub)
        first = asyncio.run(run(stub))
        generated, routed = len(stub.seen("Generate")), len(stub.seen("Route"))
        second = asyncio.run(run(stub))
        assert len(stub.seen("Generate")) == generated == len(stub.seen("Score")) == len(book)
        assert len(stub.seen("Route")) == 2 * routed
    for one, other in zip(first.results, second.results, strict=True):
        assert one.answers == other.answers
