"""The demo's parts, on drawn screens and against the stub: everything but the two services."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from molora.v1 import executor_pb2, router_pb2
from molora_client import ContextRef, DecisionReason, Molora, Routed, RouteTimings
from tests.support.stub_services import (
    ANSWER,
    Reply,
    StubServices,
    completed,
    decision,
    running_stub,
)
from training.data.calls import ToolCall, format_calls
from training.data.synthesize import synthesize
from training.demo.cases import Case, read_cases
from training.demo.override import GrpcurlFailed, override
from training.demo.report import write_report
from training.demo.run import Answer, CaseResult, run_case
from training.demo.summary import summarise
from training.pages import answer_text, call_text

EXPERTS = ("calendar", "claim-window")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("screens") / "set"
    made = synthesize(out, images_per_kind=5, tasks_per_image=6, seed=3, experts=EXPERTS)
    return made.splits["train"].path


@pytest.fixture
def stub():
    with running_stub() as services:
        yield services


def test_cases_take_turns_and_are_always_the_same(samples):
    cases = read_cases(samples, 12)
    assert Counter(case.expert for case in cases) == {"calendar": 6, "claim-window": 6}
    assert len({case.task_type for case in cases}) >= 6
    assert len({case.screen for case in cases}) == 6
    assert all(case.expected and case.screen.is_file() for case in cases)
    assert cases == read_cases(samples, 12)
    assert cases[:4] == read_cases(samples, 4)


def test_no_samples_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        read_cases(tmp_path / "none.jsonl", 4)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match="molora data label"):
        read_cases(empty, 4)


def script(stub: StubServices, text: str) -> Reply:
    delta = executor_pb2.Delta(text=text, token_ids=[1])
    return Reply(
        (
            executor_pb2.GenerateResponse(delta=delta),
            executor_pb2.GenerateResponse(completed=completed()),
        )
    )


def test_a_case_is_asked_in_every_way(stub, samples):
    case = next(case for case in read_cases(samples, 4) if case.expert == "calendar")
    right = format_calls(case.expected)
    stub.script["Predict"] = [
        Reply(
            (
                router_pb2.PredictResponse(decision=decision()),
                router_pb2.PredictResponse(delta=executor_pb2.Delta(text=right)),
                router_pb2.PredictResponse(completed=completed()),
            )
        )
    ]
    stub.script["Generate"] = [script(stub, text) for text in (ANSWER, right, "- - 1 2")]
    with Molora(stub.address, stub.address) as client:
        result = run_case(client, case, "claim-window")

    assert result.route_right
    assert result.prediction.right
    assert result.oracle.right
    assert not result.wrong.right
    assert not result.base.right
    assert result.route_ms > 0
    asked = [call.request for call in stub.seen("Generate")]
    assert [request.WhichOneof("routing") for request in asked] == ["base_only", "expert", "expert"]
    assert {request.screen.context_id for request in asked} == {"ctx-1"}
    assert all(request.max_new_tokens for request in asked)


def result_of(case: Case, *, right: bool = True, routed_to: str | None = None) -> CaseResult:
    gates = {routed_to or case.expert: 1.0}
    routed = Routed(
        gates=gates,
        layer_gates={},
        probabilities=gates,
        reason=DecisionReason.ROUTER,
        confidence=1.0,
        entropy=0.0,
        expert_set="e",
        router_version="r",
        context=ContextRef("c"),
        timings=RouteTimings(1.0, 1.0, 2.0),
        request_id="i",
    )
    good = Answer("good", case.expected, True)
    bad = Answer("<b>unreadable</b>", (), False)
    other = next(name for name in EXPERTS if name != case.expert)
    return CaseResult(case, routed, 10.0, 20.0, good if right else bad, good, bad, other, bad)


def summary_of(results, *, override_ok=True):
    return summarise(results, override_ok=override_ok, seconds=1.0, environment={"device": "cpu"})


def test_all_right_passes_and_names_every_number(samples):
    results = [result_of(case) for case in read_cases(samples, 20)]
    summary = summary_of(results)
    assert summary.passed
    content = summary.to_json()
    assert json.loads(json.dumps(content)) == content
    assert content["cases"] == 20
    for name in ("route_accuracy", "oracle_accuracy", "routed_accuracy"):
        assert content[name] == 1.0
        assert content["wilson_95"][name][0] == pytest.approx(0.839, abs=1e-3)
    assert content["base_accuracy"] == content["wrong_expert_accuracy"] == 0.0
    assert content["override_ok"] is True
    assert (content["median_route_ms"], content["median_predict_ms"]) == (10.0, 20.0)


def test_each_threshold_decides(samples):
    good = [result_of(case) for case in read_cases(samples, 20)]

    def failed(results, **more) -> set[str]:
        return {check.name for check in summary_of(results, **more).checks if not check.passed}

    assert failed(good[:19]) == {"cases"}
    assert failed(good, override_ok=False) == {"override_ok"}
    other = {"calendar": "claim-window", "claim-window": "calendar"}
    misrouted = [result_of(r.case, routed_to=other[r.case.expert]) for r in good[:2]]
    assert failed([*misrouted, *good[2:]]) == {"route_accuracy"}
    assert failed([result_of(good[0].case, right=False), *good[1:]]) == {"routed_accuracy"}
    lucky = [replace(r, base=r.oracle, wrong=r.oracle) for r in good[:7]]
    assert failed([*lucky, *good[7:]]) == {"base_accuracy", "wrong_expert_accuracy"}
    unsure = [replace(r, oracle=r.base) for r in good[:3]]
    assert failed([*unsure, *good[3:]]) == {"oracle_accuracy"}


def test_the_report_is_one_file_with_everything_in_it(samples, stub, tmp_path):
    results = [
        result_of(case, right=index > 0) for index, case in enumerate(read_cases(samples, 4))
    ]
    typed = override(
        address=stub.address, prompt="p", context_id="c", expert="calendar", max_new_tokens=9
    )
    write_report(tmp_path / "report.html", summary_of(results), results, typed)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 4
    assert page.count("<ellipse") >= 4
    assert "&lt;b&gt;unreadable&lt;/b&gt;" in page
    assert "<b>unreadable" not in page
    assert "molora.v1.ExecutorService/Generate" in page
    for outside in ('src="http', 'href="http', "<script", "@import"):
        assert outside not in page


def test_grpcurl_overrides_by_reflection(stub):
    typed = override(
        address=stub.address,
        prompt='say "no"',
        context_id="ctx-7",
        expert="claim-window",
        max_new_tokens=9,
    )
    assert typed.text == ANSWER
    assert typed.applied == {"claim-window": 1.0}
    [call] = stub.seen("Generate")
    assert call.request.prompt.text == 'say "no"'
    assert call.request.screen.context_id == "ctx-7"
    assert call.request.expert == "claim-window"


def test_a_grpcurl_call_that_fails_or_is_cut_is_an_error(stub):
    ask = {"prompt": "p", "context_id": "c", "expert": "calendar", "max_new_tokens": 9}
    stub.script["Generate"] = [Reply(())]
    with pytest.raises(GrpcurlFailed, match="without `completed`"):
        override(address=stub.address, **ask)
    with pytest.raises(GrpcurlFailed, match="exited with"):
        override(address="127.0.0.1:1", **ask)


def test_answers_in_words():
    scroll = ToolCall.computer_use("scroll", coordinate=[1, 2], pixels=300)
    assert call_text(scroll) == "scroll [1, 2] pixels=300"
    assert answer_text(Answer("", (), False)) == "(nothing)"
    assert answer_text(Answer("", (scroll, scroll), True)).count(";") == 1
