"""What is sent again, and above all what is not."""

import grpc
import pytest

from molora.v1 import executor_pb2, router_pb2
from molora_client import (
    AbortedError,
    AsyncMolora,
    ContextExpiredError,
    ContextRef,
    DeadlineExceededError,
    IncompleteStream,
    InvalidArgumentError,
    Molora,
    ResourceExhaustedError,
    UnavailableError,
)
from molora_client.errors import MoloraError
from molora_client.retry import Attempts, RetryBudget
from tests.support.stub_services import (
    ANSWER,
    SCREEN,
    Fail,
    Reply,
    decision,
    deltas,
)

UNAVAILABLE = Fail(grpc.StatusCode.UNAVAILABLE, "DRAINING")
ABORTED = Fail(grpc.StatusCode.ABORTED, "EXPERT_SET_CHANGED")
EXPIRED = Fail(grpc.StatusCode.NOT_FOUND, "CONTEXT_EXPIRED")
DECISION = router_pb2.PredictResponse(decision=decision())
PREDICT_DELTA = router_pb2.PredictResponse(delta=deltas()[0])
GENERATE_DELTA = executor_pb2.GenerateResponse(delta=deltas()[0])


@pytest.fixture
def client(stub):
    with Molora(stub.address, stub.address, timeout_s=5) as molora:
        yield molora


def request_ids(stub) -> set[str]:
    return {call.metadata["x-request-id"] for call in stub.calls}


def test_unavailable_is_retried_under_the_same_request_id(stub, client):
    stub.script["Route"] = [UNAVAILABLE, UNAVAILABLE]

    assert client.route("p", SCREEN).gates == {"calendar": 1.0}
    assert len(stub.calls) == 3
    assert len(request_ids(stub)) == 1
    assert len({call.request.SerializeToString() for call in stub.calls}) == 1


def test_unavailable_for_good_is_raised_after_four_attempts(stub, client):
    stub.script["Generate"] = [UNAVAILABLE] * 9

    with pytest.raises(UnavailableError) as caught:
        client.generate("p", SCREEN, expert="calendar")
    assert len(stub.calls) == 4
    assert caught.value.reason == "DRAINING"


def test_nobody_listening_is_unavailable():
    with Molora("127.0.0.1:1", "127.0.0.1:1", timeout_s=5) as molora:
        with pytest.raises(UnavailableError) as caught:
            molora.predict("p", SCREEN)
        assert "molora serve" in caught.value.remedy


@pytest.mark.parametrize(
    "code",
    [
        code
        for code in grpc.StatusCode
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    ],
)
def test_no_other_code_is_retried_where_nothing_routes(stub, client, code):
    stub.script["Generate"] = [Fail(code, "SOME_REASON")]

    with pytest.raises(MoloraError) as caught:
        client.generate("p", SCREEN, expert="calendar")
    # The contract knows no OUT_OF_RANGE, so no class does.
    assert caught.value.code == ("UNKNOWN" if code.name == "OUT_OF_RANGE" else code.name)
    assert caught.value.reason == "SOME_REASON"
    assert len(stub.calls) == 1


def test_predict_routes_again_after_aborted(stub, client):
    stub.script["Predict"] = [Fail(ABORTED.code, ABORTED.reason, after=(DECISION,))]

    assert client.predict("p", SCREEN).text == ANSWER
    assert len(stub.calls) == 2
    assert len(request_ids(stub)) == 1


def test_route_routes_again_after_aborted(stub, client):
    stub.script["Route"] = [Fail(ABORTED.code, "EXECUTOR_CHANGED")]

    assert client.route("p", SCREEN).gates == {"calendar": 1.0}
    assert len(stub.calls) == 2


def test_generate_leaves_routing_again_to_its_caller(stub, client):
    stub.script["Generate"] = [ABORTED]

    with pytest.raises(AbortedError) as caught:
        client.generate("p", SCREEN, expert="calendar")
    assert "Route again" in caught.value.remedy
    assert len(stub.calls) == 1


def test_an_expired_context_is_replaced_by_the_bytes_once(stub, client):
    held = ContextRef("ctx-1", stub.address, SCREEN)
    stub.script["Generate"] = [EXPIRED]

    assert client.generate("p", held, expert="calendar").text == ANSWER
    assert [call.request.screen.WhichOneof("source") for call in stub.calls] == [
        "context_id",
        "data",
    ]
    assert stub.calls[1].request.screen.data == SCREEN

    stub.calls.clear()
    stub.script["Generate"] = [EXPIRED, EXPIRED]
    with pytest.raises(ContextExpiredError):
        client.generate("p", held, expert="calendar")
    assert len(stub.calls) == 2


def test_an_expired_context_without_bytes_is_an_error(stub, client):
    stub.script["Score"] = [EXPIRED]

    with pytest.raises(ContextExpiredError) as caught:
        client.score("p", ContextRef("ctx-1", stub.address), "c", expert="calendar")
    assert "bytes" in caught.value.remedy
    assert len(stub.calls) == 1


def test_sent_bytes_are_not_sent_again_for_an_expired_context(stub, client):
    stub.script["Predict"] = [EXPIRED]

    with pytest.raises(ContextExpiredError):
        client.predict("p", SCREEN)
    assert len(stub.calls) == 1


@pytest.mark.parametrize("failure", [UNAVAILABLE, ABORTED, EXPIRED])
def test_nothing_is_retried_after_the_first_token(stub, client, failure):
    after = (DECISION, PREDICT_DELTA)
    stub.script["Predict"] = [Fail(failure.code, failure.reason, after=after)]

    stream = client.predict_stream("p", ContextRef("ctx-1", "", SCREEN))
    pieces = []
    with pytest.raises(MoloraError) as caught:
        pieces.extend(stream)
    assert caught.value.code == failure.code.name
    assert len(stub.calls) == 1
    with pytest.raises(IncompleteStream):
        _ = stream.result


def test_a_token_without_text_is_a_token(stub, client):
    silent = executor_pb2.GenerateResponse(delta=executor_pb2.Delta(token_ids=[1]))
    stub.script["Generate"] = [Fail(UNAVAILABLE.code, after=(silent,))]

    with pytest.raises(UnavailableError):
        client.generate("p", SCREEN, expert="calendar")
    assert len(stub.calls) == 1


def test_a_stream_without_completed_is_no_answer(stub, client):
    stub.script["Generate"] = [Reply((GENERATE_DELTA,)), Reply(())]
    stub.script["Predict"] = [Reply((DECISION, PREDICT_DELTA))]

    for _ in range(2):
        with pytest.raises(IncompleteStream):
            client.generate("p", SCREEN, expert="calendar")
    with pytest.raises(IncompleteStream):
        client.predict("p", SCREEN)
    assert len(stub.calls) == 3


def test_a_prediction_without_a_decision_is_no_answer(stub, client):
    completed = router_pb2.PredictResponse(completed=executor_pb2.Completed())
    stub.script["Predict"] = [Reply((PREDICT_DELTA, completed))]

    with pytest.raises(IncompleteStream):
        client.predict("p", SCREEN)


def test_an_error_after_completed_is_an_error(stub, client):
    completed = executor_pb2.GenerateResponse(completed=executor_pb2.Completed())
    stub.script["Generate"] = [
        Fail(grpc.StatusCode.INTERNAL, after=(GENERATE_DELTA, completed)),
    ]
    with pytest.raises(MoloraError):
        client.generate("p", SCREEN, expert="calendar")


def test_admin_calls_are_never_sent_twice(stub, client):
    for method, call in {
        "LoadExpert": lambda: client.load_expert("a", "b"),
        "UnloadExpert": lambda: client.unload_expert("a"),
        "ReloadExpert": lambda: client.reload_expert("a", expected_generation=1),
    }.items():
        stub.script[method] = [UNAVAILABLE]
        with pytest.raises(UnavailableError):
            call()
        assert len(stub.seen(method)) == 1


def test_a_queue_that_is_full_says_when_to_come_back(stub, client):
    stub.script["Route"] = [
        Fail(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "QUEUE_FULL",
            retry_after_s=1.5,
            metadata={"queue_length": "8"},
        )
    ]
    with pytest.raises(ResourceExhaustedError) as caught:
        client.route("p", SCREEN)
    error = caught.value
    assert error.retry_after_s == 1.5
    assert error.metadata == {"queue_length": "8"}
    assert error.request_id == stub.calls[0].metadata["x-request-id"]
    assert str(error) == (
        "RESOURCE_EXHAUSTED/QUEUE_FULL: constant text of the server (queue_length=8)"
    )


def test_no_attempt_is_made_that_the_deadline_would_cut(stub, client):
    stub.script["Route"] = [Fail(grpc.StatusCode.UNAVAILABLE, retry_after_s=60.0)]

    with pytest.raises(UnavailableError):
        client.route("p", SCREEN)
    assert len(stub.calls) == 1


def test_the_deadline_passes_as_one_for_all_attempts(stub, client):
    stub.script["Route"] = [UNAVAILABLE] * 3
    client.route("p", SCREEN, timeout_s=3)
    # Between the first and the last attempt lie waits of 0.35 s at least.
    assert stub.calls[-1].time_remaining_s < stub.calls[0].time_remaining_s - 0.2


def test_a_slow_server_is_left_at_the_deadline(stub, client):
    client.experts()  # so that no handshake is within the deadline
    stub.script["Route"] = [Reply((), delay_s=1.0)]
    with pytest.raises(DeadlineExceededError):
        client.route("p", SCREEN, timeout_s=0.3)
    assert len(stub.seen("Route")) == 1


async def test_the_async_client_keeps_the_same_rule(stub):
    stub.script["Predict"] = [UNAVAILABLE, ABORTED]
    stub.script["Route"] = [Fail(grpc.StatusCode.INVALID_ARGUMENT, "UNREADABLE_SCREEN")]
    stub.script["Generate"] = [Reply((GENERATE_DELTA,))]
    async with AsyncMolora(stub.address, stub.address) as molora:
        assert (await molora.predict("p", SCREEN)).text == ANSWER
        assert len(stub.seen("Predict")) == 3
        with pytest.raises(InvalidArgumentError):
            await molora.route("p", SCREEN)
        with pytest.raises(IncompleteStream):
            await molora.generate("p", SCREEN, expert="calendar")


def test_a_retry_storm_is_capped_at_a_tenth_of_the_calls():
    budget = RetryBudget()
    retries = 0
    for _ in range(1000):
        attempts = Attempts(budget, 60.0)
        try:
            while True:
                attempts.wait_before_next(UnavailableError("down"), None)
                retries += 1
        except UnavailableError:
            pass
    assert retries <= 0.1 * 1000 + 10


def test_waits_grow_and_obey_the_server():
    attempts = Attempts(RetryBudget(), 60.0)
    waits = [attempts.wait_before_next(UnavailableError("down"), None) for _ in range(3)]
    for wait, limit in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert limit / 2 <= wait <= limit

    hinted = Attempts(RetryBudget(), 60.0)
    assert hinted.wait_before_next(UnavailableError("down", retry_after_s=9.0), None) == 9.0
