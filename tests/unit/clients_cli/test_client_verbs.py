"""The verbs that talk to servers: what they send, print and exit with."""

import json

import grpc
import pytest

from molora.v1 import types_pb2
from tests.support.certificates import Authority
from tests.support.stub_services import ANSWER, SCREEN, Fail, running_stub

SECRET = "Click patient Doe"


def test_route_for_people(stub, molora, screen):
    done = molora("route", SECRET, "--screen", screen, "--router", stub.address)
    assert done.exit_code == 0
    for shown in ("calendar", "1.000", "0.750", "claim-window", "ROUTER", "ctx-1"):
        assert shown in done.stdout
    assert SECRET not in done.output


def test_route_for_machines(stub, molora, screen):
    done = molora(
        *("route", "p", "--screen", screen, "--router", stub.address, "--json"),
        *("--mode", "top2", "--mask", "a", "--mask", "b", "--temperature", 0.5),
        *("--hint", "calendar", "--hint-confidence", 0.9, "--system", "s", "--override", "o"),
    )
    routed = json.loads(done.stdout)
    assert routed["gates"] == {"calendar": 1.0}
    assert routed["reason"] == "ROUTER"
    assert routed["context"] == {"context_id": "ctx-1", "executor": stub.address}

    request = stub.calls[0].request
    assert request.screen.data == SCREEN
    assert request.prompt.system == "s"
    assert request.options.mode == types_pb2.ROUTING_MODE_TOP2
    assert list(request.options.masked_experts) == ["a", "b"]
    assert request.options.expert_override == "o"
    assert request.agent_hint.expert == "calendar"
    assert request.agent_hint.confidence == pytest.approx(0.9)
    assert not request.agent_hint.HasField("fast_path")


def test_predict_streams_the_answer(stub, molora, screen):
    done = molora("predict", "p", "--screen", screen, "--router", stub.address)
    assert done.exit_code == 0
    assert done.stdout.startswith(ANSWER)
    assert "applied calendar 1.000" in done.stdout

    done = molora("predict", "p", "--screen", screen, "--router", stub.address, "--json")
    prediction = json.loads(done.stdout)
    assert prediction["generation"]["text"] == ANSWER
    assert prediction["routed"]["gates"] == {"calendar": 1.0}


def test_generate_with_each_choice(stub, molora, screen):
    common = ("generate", "p", "--screen", screen, "--executor", stub.address)
    assert molora(*common, "--expert", "calendar").exit_code == 0
    assert molora(*common, "--gate", "a=0.25", "--gate", "b=0.75").exit_code == 0
    done = molora(*common, "--base-only", "--mask", "x", "--max-new-tokens", 5)
    assert "base only" in done.stdout

    by_expert, by_gates, by_base = (call.request for call in stub.calls)
    assert by_expert.expert == "calendar"
    assert dict(by_gates.gates.weights) == {"a": 0.25, "b": 0.75}
    assert by_base.base_only
    assert by_base.max_new_tokens == 5


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--expert", "a", "--base-only"),
        ("--gate", "a"),
        ("--gate", "a=b"),
        ("--gate", "=1"),
        ("--gate", "a=0.5", "--gate", "a=0.5"),
        ("--no-such-flag",),
    ],
)
def test_wrong_usage_is_2_and_sends_nothing(stub, molora, screen, arguments):
    done = molora("generate", "p", "--screen", screen, "--executor", stub.address, *arguments)
    assert done.exit_code == 2
    assert stub.calls == []


def test_a_missing_screen_is_wrong_usage(molora, tmp_path):
    assert molora("route", "p", "--screen", tmp_path / "none.png").exit_code == 2


def test_a_confidence_without_a_hint_is_wrong_usage(molora, screen):
    assert molora("route", "p", "--screen", screen, "--hint-confidence", 0.5).exit_code == 2


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("INVALID_ARGUMENT", 67), ("NOT_FOUND", 69), ("INTERNAL", 77), ("UNAUTHENTICATED", 80)],
)
def test_a_failed_call_is_one_line_with_a_remedy(stub, molora, screen, code, exit_code):
    stub.script["Route"] = [Fail(grpc.StatusCode[code], "SOME_REASON", metadata={"limit": "3"})]
    done = molora("route", SECRET, "--screen", screen, "--router", stub.address)
    assert done.exit_code == exit_code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{code}/SOME_REASON: constant text of the server (limit=3). " in done.stderr
    assert SECRET not in done.stderr


def test_a_failed_call_for_machines(stub, molora, screen):
    stub.script["Route"] = [Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_s=2)]
    done = molora("route", "p", "--screen", screen, "--router", stub.address, "--json")
    assert done.exit_code == 72
    failure = json.loads(done.stderr)["error"]
    assert (failure["code"], failure["reason"]) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert failure["retry_after_s"] == 2
    assert failure["remedy"]
    assert failure["request_id"] == stub.calls[0].metadata["x-request-id"]


def test_a_stream_that_breaks_is_a_failure_although_text_was_shown(stub, molora, screen):
    from tests.support.stub_services import Reply, predict_events

    stub.script["Predict"] = [Reply(tuple(predict_events(stub.address))[:-1])]
    done = molora("predict", "p", "--screen", screen, "--router", stub.address)
    assert done.exit_code == 77
    assert "INCOMPLETE_STREAM" in done.stderr


def test_nobody_there(molora):
    done = molora("experts", "list", "--executor", "127.0.0.1:1")
    assert done.exit_code == 64 + 14
    assert "molora serve all" in done.stderr


def test_experts(stub, molora):
    done = molora("experts", "list", "--executor", stub.address)
    assert "calendar" in done.stdout
    assert "dddddddddddd" in done.stdout

    done = molora("experts", "list", "--executor", stub.address, "--json")
    listed = json.loads(done.stdout)
    assert [expert["name"] for expert in listed["experts"]] == ["calendar", "claim-window"]

    done = molora("experts", "load", "new", "new/adapter", "--executor", stub.address)
    assert done.stdout.startswith("loaded new generation 1")
    done = molora("experts", "unload", "old", "--generation", 3, "--executor", stub.address)
    assert done.stdout.startswith("unloaded old")
    assert stub.seen("LoadExpert")[0].request.path == "new/adapter"
    assert stub.seen("UnloadExpert")[0].request.expected_generation == 3


def test_a_certificate_is_shown_under_mutual_tls(molora, screen, tmp_path):
    authority = Authority()
    server, agent = authority.issue(), authority.issue("agent")
    contents = {"ca": authority.pem, "cert": agent.certificate, "key": agent.key, "token": b"s"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    pair = [(server.key, server.certificate)]
    trust = ("--tls-ca", tmp_path / "ca")
    shown = ("--tls-cert", tmp_path / "cert", "--tls-key", tmp_path / "key")
    with running_stub(grpc.ssl_server_credentials(pair, authority.pem, True)) as stub:
        address, token = stub.address, ("--token-file", tmp_path / "token")
        asked = (
            "predict",
            "p",
            "--screen",
            screen,
            "--router",
            address,
            *trust,
            *token,
            "--timeout",
            "20",
        )
        assert molora(*asked, *shown).exit_code == 0
        listed = ("experts", "list", "--executor", address, *trust, *token)
        assert molora(*listed, *shown).exit_code == 0
        assert molora(*listed, "--timeout", "0.5").exit_code == 64 + 14
    assert {call.metadata["authorization"] for call in stub.calls} == {"Bearer s"}
    for flags in (shown, (*trust, *shown[:2])):
        wrong = molora("experts", "list", *flags)
        assert wrong.exit_code == 2
        assert "needs its key, and the CA" in " ".join(wrong.output.split())


def test_the_token_comes_from_a_file(stub, molora, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret\n")
    molora("experts", "list", "--executor", stub.address, "--token-file", token)
    assert stub.calls[0].metadata["authorization"] == "Bearer secret"

    done = molora("experts", "list", "--executor", "10.0.0.1:50052", "--token-file", token)
    assert done.exit_code == 67
    assert "plaintext" in done.stderr
    assert "secret" not in done.output
