"""Cases are asked in every way, some at once, and their answers are scored."""

import asyncio

import grpc
import pytest

from molora_client import AsyncMolora, FailedPreconditionError
from tests.support.evaluation import EXPERTS, knowing, write_dataset
from tests.support.stub_services import EXPERT_SET, Fail, running_stub
from training.evaluation import run as evaluation_run
from training.evaluation.asks import BLANK
from training.evaluation.cases import read_cases
from training.evaluation.run import run_cases


@pytest.fixture
def stub():
    with running_stub() as services:
        knowing(services)
        yield services


def run(stub, cases, **options):
    async def asked():
        async with AsyncMolora(stub.address, stub.address) as client:
            return await run_cases(client, cases, max_new_tokens=7, **options)

    return asyncio.run(asked())


def test_one_case_in_every_way(stub, tmp_path):
    case, other = read_cases(write_dataset(tmp_path, cases=1))
    first, second = run(stub, [case, other], concurrency=1).results
    assert first.case == case
    assert second.case == other
    passed = {mode: answer.right for mode, answer in first.answers.items() if mode != "random"}
    assert passed == {
        "oracle": True, "soft": True, "top1": True, "top2": True, "uniform": False, "base": False,
    }  # fmt: skip
    assert {name: answer.right for name, answer in first.by_expert.items()} == {
        "calendar": True,
        "claim-window": False,
    }
    assert first.answers["random"] in first.by_expert.values()
    assert first.answers["oracle"].loss == pytest.approx(1.0), "mean of 0.5 and 1.5 nats"
    assert not first.answers["oracle"].cut
    assert first.chosen == "calendar"
    assert first.second == "claim-window"
    assert first.other_screen == "claim-window"
    assert first.with_other_screen == "calendar", "this router goes by the text"
    assert first.without_text == "calendar", "and by the screen if there is none"
    soft = first.decisions["soft"]
    assert soft.gates == pytest.approx({"calendar": 0.9, "claim-window": 0.1})
    assert first.decisions["top1"].gates == {"calendar": 1.0}


def test_what_goes_over_the_wire(stub, tmp_path):
    run(stub, read_cases(write_dataset(tmp_path, ("calendar",), cases=1)))
    generated = [call.request for call in stub.seen("Generate")]
    given = [dict(request.gates.weights) for request in generated]
    assert given[:2] == [{"calendar": 1.0}, {"claim-window": 1.0}]
    assert given[2] == {"calendar": 0.5, "claim-window": 0.5}
    assert generated[3].base_only
    assert given[4] == pytest.approx({"calendar": 0.9, "claim-window": 0.1})
    assert len(given) == 5, "top-1 is an expert alone, top-2 of two is soft: both were asked"
    assert {request.max_new_tokens for request in generated} == {7}
    assert {request.expert_set for request in generated} == {EXPERT_SET}
    assert {request.screen.context_id for request in generated} == {"ctx-calendar"}
    scored = [call.request for call in stub.seen("Score")]
    assert {request.completion[:11] for request in scored} == {"<tool_call>"}
    routes = [call.request for call in stub.seen("Route")]
    assert [list(request.options.masked_experts) for request in routes[3:]] == [
        ["calendar"], [], [],
    ]  # fmt: skip
    assert [bool(request.screen.data) for request in routes] == [True, *[False] * 3, True, False]
    assert routes[-1].prompt.text == BLANK


def test_cases_keep_their_order(stub, tmp_path):
    cases = read_cases(write_dataset(tmp_path, cases=3))
    seen = []
    found = run(stub, cases, progress=lambda done, total: seen.append((done, total)))
    assert [result.case for result in found.results] == list(cases)
    assert seen == [(done, 6) for done in range(7)]
    assert found.experts == EXPERTS
    assert found.environment["experts"].startswith("calendar dddddddddddd")
    assert len(stub.seen("Generate")) == 6 * 5


@pytest.mark.parametrize(("asked", "most"), [(None, 3), (2, 2), (9, 6)])
def test_as_many_at_once_as_there_are_slots(stub, tmp_path, monkeypatch, asked, most):
    running, seen = 0, []

    async def slow(client, case, other, ways):
        nonlocal running
        running += 1
        seen.append(running)
        await asyncio.sleep(0.001)
        running -= 1

    monkeypatch.setattr(evaluation_run, "ask_case", slow)
    run(stub, read_cases(write_dataset(tmp_path, cases=3)), concurrency=asked)
    assert max(seen) == most


def test_a_router_that_abstains_chose_nobody(stub, tmp_path):
    cases = read_cases(write_dataset(tmp_path, ("calendar",), cases=1))
    stub.script["Route"] = [Fail(grpc.StatusCode.FAILED_PRECONDITION, "ABSTAINED")] * 5
    (result,) = run(stub, cases).results
    assert result.decisions == dict.fromkeys(("soft", "top1", "top2"))
    assert result.answers["top1"] is None
    assert result.answers["oracle"].right, "its own expert is asked all the same"
    assert result.chosen is result.second is result.with_other_screen is None
    assert stub.seen("Generate")[0].request.screen.data


def test_another_failure_ends_the_evaluation(stub, tmp_path):
    cases = read_cases(write_dataset(tmp_path, cases=4))
    stub.script["Generate"] = [Fail(grpc.StatusCode.FAILED_PRECONDITION, "NOT_LOADED")]
    with pytest.raises(FailedPreconditionError):
        run(stub, cases)


def test_a_screen_that_is_refused_ends_it_and_is_named(stub, tmp_path):
    first, second = read_cases(write_dataset(tmp_path, cases=1))
    stub.script["Route"] = [Fail(grpc.StatusCode.INVALID_ARGUMENT, "UNREADABLE_SCREEN")]
    with pytest.raises(
        ValueError, match=f"record ({first.id}|{second.id}) with .* cannot be asked"
    ):
        run(stub, [first, second])


def test_an_expert_that_is_not_served(stub, tmp_path):
    cases = read_cases(write_dataset(tmp_path, ("desktop",), cases=1))
    with pytest.raises(ValueError, match="name desktop"):
        run(stub, cases)
    assert not stub.seen("Route")


def test_a_single_expert_is_never_masked(stub, tmp_path):
    knowing(stub, ("calendar",))
    (result,) = run(stub, read_cases(write_dataset(tmp_path, ("calendar",), cases=1))).results
    assert result.second is None
    assert result.other_screen == "calendar"
