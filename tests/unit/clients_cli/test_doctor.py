"""Each check on a place that is wrong in one way; servers that really start are in integration."""

import datetime
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from clients.cli import checks, credentials, trial
from clients.cli.findings import Finding, State, exit_code, ok, skipped
from executor_service.settings import ExecutorSettings
from molora.v1 import executor_pb2
from molora_client import Molora
from router_service.settings import RouterSettings
from service_chassis.settings import ServerSettings
from tests.support.certificates import LONG_AGO, Authority, write_server
from tests.support.stub_services import Fail, Reply, generate_events, predict_events


def test_the_exit_code_is_that_of_the_first_failure():
    bad = [Finding("a", State.FAILED, "", "", code) for code in (3, 2)]
    assert exit_code([ok("x", ""), skipped("y", ""), *bad]) == 3
    assert exit_code([ok("x", ""), Finding("w", State.WARNING, "")]) == 0


@pytest.mark.parametrize("service", ["router", "executor"])
def test_versions(service, monkeypatch):
    found = checks.check_versions(service)
    assert found.state is State.OK
    assert "grpcio " in found.found
    assert ("torch " in found.found) == (service == "executor")
    monkeypatch.setattr(
        checks, "_installed", lambda name: {"numpy": "0.1", "grpcio": None}.get(name, "99")
    )
    found = checks.check_versions(service)
    assert (found.state, found.exit_code) == (State.FAILED, 1)
    assert "grpcio>=1.78.2 (missing)" in found.found
    assert "numpy>=1.26 (0.1)" in found.found
    assert ("transformers" in found.found) == (service == "executor"), "99 is above its limit"
    assert found.remedy == f"pip install 'molora[{service}]'"


@pytest.mark.parametrize("service", ["router", "executor"])
def test_without_the_extra_no_room_is_imported(molora, service, monkeypatch):
    monkeypatch.setattr(checks, "_installed", {}.get)
    monkeypatch.setitem(sys.modules, f"{service}_service.settings", None)
    done = molora("doctor", service)
    assert done.exit_code == 1
    assert f"{service}: packages: pip install 'molora[{service}]'" in done.output


def test_settings(monkeypatch):
    monkeypatch.setenv("MOLORA_EXECUTOR_SLOTS", "3")
    found, settings = checks.check_settings(ExecutorSettings, "executor", ["--port", "0"])
    assert (found.state, found.found) == (State.OK, "set: port, slots")
    assert (settings.port, settings.slots) == (0, 3)
    found, settings = checks.check_settings(ExecutorSettings, "executor", ["--slots", "none"])
    assert (found.state, found.exit_code, settings) == (State.FAILED, 2, None)
    assert "--slots (MOLORA_EXECUTOR_SLOTS): got 'none'" in found.found


def secured(folder: Path, pair, client_ca=None) -> ServerSettings:
    files = write_server(folder, pair, client_ca)
    return ServerSettings(
        tls_cert=files.certificate, tls_key=files.key, tls_client_ca=files.client_ca
    )


def test_tls(tmp_path):
    authority = Authority()
    assert "this machine only" in credentials.check_tls(ServerSettings(), "router").found
    good = secured(tmp_path, authority.issue("molora.example", "10.0.0.1"), authority.pem)
    found = credentials.check_tls(good, "router")
    assert found.state is State.OK
    assert found.found.startswith("for molora.example, 10.0.0.1, until 3000-")
    assert found.found.endswith("clients show one too")
    found = credentials.check_tls(secured(tmp_path, authority.issue(expired=True)), "router")
    assert (found.state, found.exit_code) == (State.FAILED, 2)
    assert "expired" in found.found
    now = datetime.datetime.now(datetime.timezone.utc)
    soon = authority._ca.issue_cert(
        "x.example", not_before=LONG_AGO, not_after=now + datetime.timedelta(days=5)
    )
    pair = SimpleNamespace(
        certificate=soon.cert_chain_pems[0].bytes(), key=soon.private_key_pem.bytes()
    )
    found = credentials.check_tls(secured(tmp_path, pair), "router")
    assert (found.state, found.remedy) == (State.WARNING, "renew it within 4 days")


def test_tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("infer secret\n")
    for mode, state in ((0o600, State.OK), (0o640, State.WARNING), (0o604, State.WARNING)):
        path.chmod(mode)
        found = credentials.check_tokens(ServerSettings(tokens_file=path), "router")
        assert found.state is state
        assert "secret" not in found.found
    assert credentials.check_tokens(ServerSettings(), "router").state is State.OK


def test_ports():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = checks.check_port("127.0.0.1", port, "gRPC", "router", runs=False)
        assert (found.state, found.exit_code) == (State.FAILED, 1)
        assert f"127.0.0.1:{port}" in found.found
        assert "free it" in found.remedy
        assert checks.check_port("127.0.0.1", port, "gRPC", "router", runs=True).state is State.OK
    assert checks.check_port("127.0.0.1", port, "gRPC", "router", runs=False).state is State.OK
    assert checks.check_port("127.0.0.1", 0, "gRPC", "router", runs=False).state is State.OK


def checkpoint(folder: Path, weights_bytes: int = 175_000_000) -> ExecutorSettings:
    """The 8B's shape; the weights are a hole in a file."""
    text = {"num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 128}
    text |= {"max_position_embeddings": 262_144, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps({"text_config": text}))
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(weights_bytes)
    return ExecutorSettings(model=folder)


def test_the_memory_that_the_guide_tells(tmp_path):
    text = (Path(__file__).parents[3] / "docs/OPERATIONS.md").read_text()
    settings = checkpoint(tmp_path, weights_bytes=17_500_000_000)
    small = ExecutorSettings(model=tmp_path, slots=2, slot_tokens=4096)
    needed = [checks.needed_bytes(one, on_cuda=True) / 2**30 for one in (settings, small)]
    assert "(8 slots of 8,704 tokens) that is\n27 GiB" in text
    assert "`--slots 2 --slot-tokens 4096` it is 18 GiB" in text
    assert [round(one) for one in needed] == [27, 18]


def test_memory(tmp_path, monkeypatch):
    settings = checkpoint(tmp_path)
    # 147,456 bytes a token in bfloat16, times 8 slots of 8,704 tokens; then what is kept.
    kept = settings.context_bytes + settings.prefix_bytes
    slots = 147_456 * 8 * 8704
    assert checks.needed_bytes(settings, on_cuda=True) == 175_000_000 + slots + kept
    assert checks.needed_bytes(settings, on_cuda=False) == 2 * (175_000_000 + slots) + kept
    for free, state, code in ((10**12, State.OK, 0), (10**9, State.FAILED, 3)):
        monkeypatch.setattr(checks, "_available_bytes", lambda free=free: free)
        found = checks.check_memory(settings)
        assert found.state is state
        assert exit_code([found]) == code
    monkeypatch.setattr(checks, "_available_bytes", lambda: None)
    assert checks.check_memory(settings).state is State.SKIPPED
    for broken in ("{", "[]", "{}"):
        (tmp_path / "config.json").write_text(broken)
        assert checks.check_memory(settings).exit_code == 3


def test_what_is_free_here():
    assert checks._available_bytes() > 10**6


def test_checkpoint_and_bundle(tmp_path):
    assert checks.check_model_files(checkpoint(tmp_path)).found == f"{tmp_path} (167 MiB)"
    missing = tmp_path / "none"
    found = checks.check_model_files(ExecutorSettings(model=missing))
    assert (found.state, found.exit_code) == (State.FAILED, 3)
    found = checks.check_bundle_files(RouterSettings(bundle=missing))
    assert (found.state, found.exit_code) == (State.FAILED, 3)
    found = checks.check_device(ExecutorSettings(device="cuda", model=tmp_path))
    assert (found.state, found.exit_code) == (State.FAILED, 3)
    assert "cores" in checks.check_device(ExecutorSettings(model=tmp_path)).found


@pytest.fixture
def client(stub):
    with Molora(stub.address, stub.address, timeout_s=10) as client:
        yield client


def test_golden_request(stub, client):
    findings = trial.golden_request(client, client)
    assert [finding.state for finding in findings] == [State.OK] * 3
    experts, decision, answer = [finding.found for finding in findings]
    assert experts == "calendar, claim-window"
    assert decision == "ROUTER: calendar 1.00"
    assert answer.startswith("calendar answers twice the same")
    assert [call.request.options.expert_override for call in stub.seen("Predict")] == [
        "calendar",
        "calendar",
    ]
    stub.script["Route"] = [Fail(grpc.StatusCode.FAILED_PRECONDITION, "ABSTAINED")]
    assert "abstains" in trial.golden_request(client, client)[1].found


def test_golden_request_of_an_executor_alone(stub, client):
    assert exit_code(trial.golden_request(client, None)) == 0
    assert [call.request.expert for call in stub.seen("Generate")] == ["calendar"] * 2
    assert not stub.seen("Route")


def test_a_call_that_fails_gives_its_exit_code(stub, client):
    stub.script["Route"] = [Fail(grpc.StatusCode.FAILED_PRECONDITION, "EXPERT_CHANGED")]
    findings = trial.golden_request(client, client)
    assert exit_code(findings) == 64 + 9
    assert "EXPERT_CHANGED" in findings[-1].found
    assert findings[-1].remedy


def test_answers_that_differ_are_found(stub, client):
    other = list(predict_events(stub.address))
    other[1].delta.token_ids[0] = 99
    stub.script["Predict"] = [Reply(tuple(other))]
    [*_, last] = trial.golden_request(client, client)
    assert (last.state, last.found) == (
        State.FAILED,
        "two equal requests got different answers",
    )


def test_another_expert_is_found(stub, client):
    wrong = tuple(generate_events(executor_pb2.GenerateRequest(expert="other")))
    stub.script["Generate"] = [Reply(wrong), Reply(wrong)]
    [*_, last] = trial.golden_request(client, None)
    assert (last.state, last.found) == (State.FAILED, "another expert ran than was asked for")


def test_the_screen_is_a_screen():
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(trial.blank_screen())) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (320, 240))


FAILS = """
import sys
print("executor: the model is half a model; copy it again", file=sys.stderr)
print('{"event": "other"}', file=sys.stderr)
sys.exit(3)
"""


def test_a_server_that_does_not_start(tmp_path, monkeypatch):
    package = tmp_path / "executor_service"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAILS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(trial.NotStarted) as caught,
        trial.started("executor", ExecutorSettings(), {}),
    ):
        raise AssertionError("it does not start")
    finding = caught.value.finding
    assert (finding.check, finding.state, finding.exit_code) == (
        "executor: starts",
        State.FAILED,
        3,
    )
    assert finding.found == "the model is half a model; copy it again"


def test_doctor_says_what_is_wrong(molora, monkeypatch, tmp_path):
    monkeypatch.setenv("MOLORA_ROUTER_BUNDLE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MOLORA_ROUTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("MOLORA_ROUTER_METRICS_PORT", "0")
        done = molora("doctor", "router", "--json")
        people = molora("doctor", "router")
    told = json.loads(done.stdout)
    assert done.exit_code == told["exit_code"] == 1, "the port comes before the bundle"
    assert not told["ok"]
    states = {check["check"]: check["state"] for check in told["checks"]}
    assert states == {
        "router: packages": "ok",
        "router: settings": "ok",
        "router: TLS": "ok",
        "router: tokens": "ok",
        "router: gRPC port": "failed",
        "router: metrics port": "ok",
        "router: bundle": "failed",
        "router: TLS to the executor": "ok",
        "router: token for the executor": "ok",
    }
    assert people.exit_code == 1
    assert "router: gRPC port: free it" in people.stdout
    assert molora("doctor", "router", "--", "--port", "x").exit_code == 2
