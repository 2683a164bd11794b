"""Several routers and executors: who gets the next call, and who is passed over."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from molora_client import (
    AsyncMolora,
    ContextRef,
    InvalidArgumentError,
    Molora,
    UnavailableError,
    health,
    replicas,
)
from molora_client.replicas import Replicas
from tests.support.addresses import free_address
from tests.support.stub_services import ANSWER, SCREEN, Fail, Reply

UNAVAILABLE = Fail(grpc.StatusCode.UNAVAILABLE, "DRAINING")
SERVICE = "molora.v1.RouterService"


@pytest.fixture
def stubs(stub, other_stub):
    for one in (stub, other_stub):
        one.serving = True
    return [stub, other_stub]


@pytest.fixture
def addresses(stubs) -> str:
    return ", ".join(stub.address for stub in stubs)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """What was said is believed however slow this machine is; a test that wants less says so."""
    monkeypatch.setattr(replicas, "BELIEVED_S", 600.0)


@pytest.fixture
def client(addresses):
    with Molora(addresses, addresses, timeout_s=5) as molora:
        yield molora


def counts(stubs, method: str) -> list[int]:
    return [len(stub.seen(method)) for stub in stubs]


def test_those_that_serve_take_turns(stubs, client):
    for _ in range(6):
        client.route("p", SCREEN)
    assert counts(stubs, "Route") == [3, 3]
    assert [stub.health_checks for stub in stubs] == [1, 1], "an answer is believed for a while"


def test_each_kind_of_server_has_its_own_turn(stubs, client):
    client.route("p", SCREEN)
    client.generate("p", SCREEN, expert="calendar")
    client.predict("p", SCREEN)
    client.experts()
    assert counts(stubs, "Route") == [1, 0]
    assert counts(stubs, "Generate") == [1, 0]
    assert counts(stubs, "Predict") == [0, 1]
    assert counts(stubs, "ListExperts") == [0, 1]


def test_one_that_does_not_serve_is_passed_over_until_it_does(stubs, client, monkeypatch):
    stubs[0].serving = False
    for _ in range(3):
        client.route("p", SCREEN)
    assert counts(stubs, "Route") == [0, 3]
    monkeypatch.setattr(replicas, "BELIEVED_S", 0.0)
    stubs[0].serving = True
    for _ in range(4):
        client.route("p", SCREEN)
    assert counts(stubs, "Route") == [2, 5]


def test_one_that_is_not_there_costs_no_call(stubs):
    gone = free_address()
    with Molora(f"{gone},{stubs[0].address}", timeout_s=5) as client:
        for _ in range(4):
            client.route("p", SCREEN)
    assert counts(stubs, "Route") == [4, 0]


def test_what_was_unavailable_is_sent_to_another_under_the_same_id(stubs, client):
    stubs[0].script["Predict"] = [UNAVAILABLE]
    assert client.predict("p", SCREEN).text == ANSWER
    assert counts(stubs, "Predict") == [1, 1]
    ids = {call.metadata["x-request-id"] for stub in stubs for call in stub.calls}
    assert len(ids) == 1
    client.predict("p", SCREEN)
    assert counts(stubs, "Predict") == [1, 2], "the one that failed is passed over for a while"


def test_where_none_serves_the_call_says_why(stubs, client):
    for stub in stubs:
        stub.serving = False
        stub.script["Route"] = [Fail(grpc.StatusCode.FAILED_PRECONDITION, "EXPERT_MISSING")] * 2
    with pytest.raises(Exception, match="EXPERT_MISSING"):
        client.route("p", SCREEN)
    assert sum(counts(stubs, "Route")) == 1


def test_nobody_there(stubs):
    with (
        Molora(f"{free_address()},{free_address()}", timeout_s=1) as client,
        pytest.raises(UnavailableError),
    ):
        client.route("p", SCREEN)


def test_a_server_without_health_is_taken_to_be_well(stubs, client):
    for stub in stubs:
        stub.serving = None
    for _ in range(4):
        client.route("p", SCREEN)
    assert counts(stubs, "Route") == [2, 2]


def test_a_single_address_is_never_asked_how_it_is(stubs):
    stubs[0].serving = False
    with Molora(stubs[0].address, stubs[0].address, timeout_s=5) as client:
        client.route("p", SCREEN)
    assert stubs[0].health_checks == 0


def test_a_held_screen_goes_to_the_one_that_holds_it_however_it_is(stubs, client):
    stubs[1].serving = False
    held = ContextRef("ctx-1", stubs[1].address, SCREEN)
    for _ in range(3):
        client.generate("p", held, expert="calendar")
        client.score("p", held, "c", expert="calendar")
    assert counts(stubs, "Generate") == counts(stubs, "Score") == [0, 3]


def test_extracted_features_say_which_one_holds_the_screen(stubs, client):
    holders = [client.features("p", SCREEN).context.executor for _ in range(2)]
    assert holders == [stub.address for stub in stubs]


def test_a_change_of_experts_needs_one_executor(stubs, client):
    for change in (
        lambda: client.load_expert("a", "b"),
        lambda: client.unload_expert("a"),
        lambda: client.reload_expert("a", expected_generation=1),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            change()
        assert caught.value.reason == "SEVERAL_EXECUTORS"
        assert "one `executor`" in caught.value.remedy
    assert not any(stub.calls for stub in stubs)


def test_a_token_goes_nowhere_in_plaintext_if_one_address_is_beyond_loopback(stubs):
    with (
        Molora(f"{stubs[0].address},10.0.0.7:50051", token="secret") as client,
        pytest.raises(InvalidArgumentError, match="plaintext"),
    ):
        client.route("p", SCREEN)
    assert stubs[0].calls == []
    assert stubs[0].health_checks == 0


@pytest.mark.parametrize("addresses", ["", " , "])
def test_no_address(addresses):
    with pytest.raises(InvalidArgumentError, match="RouterService"):
        Molora(addresses)


async def test_the_async_client_takes_turns_too(stubs, addresses):
    stubs[1].script["Route"] = [Reply((), delay_s=0.3)]
    async with AsyncMolora(addresses, addresses) as client:
        await asyncio.gather(*(client.predict("p", SCREEN) for _ in range(20)))
        stubs[0].script["Generate"] = [UNAVAILABLE]
        async with client.generate_stream("p", SCREEN, expert="calendar") as stream:
            pieces = [piece async for piece in stream]
    assert "".join(pieces) == ANSWER
    assert counts(stubs, "Generate") == [1, 1]
    assert all(seen >= 5 for seen in counts(stubs, "Predict"))


def test_turns_are_fair_among_threads():
    three = Replicas("a:1,b:1,c:1", SERVICE)

    def choose(_: int) -> str:
        first = three.in_turn()[0]
        three.note(first, serving=True)
        return first

    with ThreadPoolExecutor(8) as pool:
        taken = Counter(pool.map(choose, range(300)))
    assert taken == {"a:1": 100, "b:1": 100, "c:1": 100}


def test_while_one_asks_the_others_go_by_what_was_said_before(monkeypatch):
    pair = Replicas("a:1,b:1", SERVICE)
    assert pair.is_serving("a:1") is None
    pair.note("a:1", serving=False)
    assert pair.is_serving("a:1") is False
    now = replicas.time.monotonic()
    monkeypatch.setattr(replicas.time, "monotonic", lambda: now + replicas.BELIEVED_S + 1)
    assert pair.is_serving("a:1") is None
    assert pair.is_serving("a:1") is False


def test_the_messages_of_health_are_those_of_the_protocol():
    from grpc_health.v1 import health_pb2

    real = health_pb2.HealthCheckRequest(service=SERVICE)
    assert health.check_request(SERVICE).SerializeToString() == real.SerializeToString()
    reply = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert health.CHECK.reply.FromString(reply.SerializeToString()).status == health.SERVING
