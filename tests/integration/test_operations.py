"""Every grpcurl command of docs/OPERATIONS.md, as it stands there, with the real binary."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from molora.v1 import types_pb2
from tests.support.certificates import Authority, write_server
from tests.support.processes import environment, running
from tests.support.services import Services, services

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/OPERATIONS.md").read_text()
SCREEN = ROOT / "miniature/samples/images/calendar_00000.png"
MARK = "=== "
TOKEN = "a-token-of-the-router"


def read_blocks() -> dict[str, str]:
    """The shell commands below each heading that has any with grpcurl."""
    found = {}
    for section in re.split(r"^#+ ", DOCUMENT, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        code = "".join(block for block in blocks if "grpcurl" in block)
        if code:
            found[section.splitlines()[0]] = code
    return found


BLOCKS = read_blocks()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with services(tmp_path_factory.mktemp("operations")) as both:
        yield both


@pytest.fixture(scope="module")
def secured(both: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A router with TLS and tokens: its address, and the folder of what a client needs."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority()
    files = write_server(folder, authority.issue("molora.example", "127.0.0.1"))
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "token").write_text(TOKEN)
    (folder / "tokens").write_text(f"infer {TOKEN}\n")
    flags = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key))
    flags += ("--tokens-file", str(folder / "tokens"), "--executor", both.executor.address)
    flags += ("--bundle", str(both.bundle))
    log_file = folder / "router.log"
    with running("router_service", *flags, log_file=log_file, ca=authority.pem) as router:
        yield router.address, folder
        assert TOKEN not in router.log


@pytest.fixture(scope="module")
def said(both: Services, secured: tuple[str, Path]) -> dict[str, str]:
    """What the commands of each heading printed, run one after the other in one shell."""
    address, folder = secured
    (folder / "screen.png").write_bytes(SCREEN.read_bytes())
    script = "".join(f"echo '{MARK}{heading}'\n{code}" for heading, code in BLOCKS.items())
    # The name is in the certificate, but in no name server.
    script = script.replace("-cacert ca.pem", "-cacert ca.pem -authority molora.example")
    script = script.replace("molora.example:50051", address)
    for port, server in (("50051", both.router), ("50052", both.executor)):
        script = script.replace(f"localhost:{port}", server.address)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    parts = re.split(rf"^{MARK}(.*)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def messages(text: str) -> list[Any]:
    """The JSON objects that grpcurl printed one after the other."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def completed(text: str) -> list[Any]:
    return [message["completed"] for message in messages(text) if "completed" in message]


def test_every_example_is_run(said: dict[str, str]) -> None:
    inside = "".join(BLOCKS.values())
    outside = re.sub(r"^```sh\n.*?^```$", "", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"grpcurl +-", outside), "it stands where the test does not see it"
    assert len(re.findall(r"^grpcurl ", inside, re.MULTILINE)) == inside.count("grpcurl") >= 20
    assert list(said) == list(BLOCKS)


def test_health_and_reflection(said: dict[str, str]) -> None:
    assert messages(said["Is it up"]) == [{"status": "SERVING"}] * 3
    listed = said["What can be asked"]
    for service in ("ExecutorService", "ExpertAdminService"):
        assert f"molora.v1.{service}\n" in listed
    assert "bool base_only" in listed


def test_what_is_loaded(said: dict[str, str]) -> None:
    experts, server, router = messages(said["What is loaded"])
    assert [expert["name"] for expert in experts["experts"]] == ["calendar", "claim-window"]
    assert server["expert_set"] == router["expert_set"] == experts["expert_set"]
    assert server["limits"]["slots"] == 8
    assert router["serving"]
    rules = {"agent_accept", "agent_fast_path", "agent_veto", "abstention"}
    assert router["threshold_reasons"].keys() == rules
    # A rule without a value is never reached: nothing was shown to be safe.
    assert router["thresholds"].keys() <= rules


def test_why(said: dict[str, str]) -> None:
    [routed] = messages(said["Why a decision was taken"])
    assert routed["decision"]["reason"] == "DECISION_REASON_ROUTER"
    assert routed["decision"]["probabilities"].keys() == {"calendar", "claim-window"}
    section = DOCUMENT.partition("Why a decision was taken\n")[2].partition("\n#")[0]
    explained = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", section, re.MULTILINE))
    names = types_pb2.DESCRIPTOR.enum_types_by_name["DecisionReason"].values_by_name
    reasons = {name.removeprefix("DECISION_REASON_") for name in names}
    assert explained == reasons - {"UNSPECIFIED"}


def test_context(said: dict[str, str]) -> None:
    [answer] = completed(said["A held screen, used again"])
    weights = answer["applied"]["gates"]["weights"]
    assert weights == pytest.approx({"calendar": 0.7, "claim-window": 0.3})
    assert "vision_reused" not in answer["applied"], "the calendar expert adapts the tower"


def test_override(said: dict[str, str]) -> None:
    text = said["Manual override"]
    alone, forced, bare = [answer["applied"] for answer in completed(text)]
    assert alone["gates"]["weights"] == {"calendar": 1}
    assert forced["gates"]["weights"] == {"claim-window": 1}
    [decision] = [m["decision"] for m in messages(text) if "decision" in m]
    assert decision["reason"] == "DECISION_REASON_MANUAL_OVERRIDE"
    assert bare["base_only"]
    assert bare["vision_reused"]
    assert "gates" not in bare


def test_mask(said: dict[str, str]) -> None:
    routed, *_ = messages(said["Mask"])
    assert routed["decision"]["gates"]["weights"] == {"claim-window": 1}
    [answer] = completed(said["Mask"])
    assert answer["applied"]["gates"]["weights"] == {"claim-window": 1}
    assert answer["applied"]["masked_experts"] == ["calendar"]


def test_score(said: dict[str, str]) -> None:
    [scored] = messages(said["How sure the model is of an answer"])
    assert len(scored["token_ids"]) == len(scored["log_probabilities"]) > 1


def test_experts_come_and_go(said: dict[str, str], both: Services) -> None:
    loaded, replaced, unloaded = messages(said["Load, replace and unload an expert"])
    before = messages(said["What is loaded"])[0]["expert_set"]
    assert [one["expert"]["generation"] for one in (loaded, replaced, unloaded)] == [1, 2, 2]
    assert loaded["expert"]["digest"] == replaced["expert"]["digest"]
    assert loaded["expert_set"] != before == unloaded["expert_set"]
    entries = [json.loads(line) for line in both.executor.log.splitlines()]
    acts = [entry for entry in entries if entry["event"] == "experts changed"]
    assert [(act["act"], act["expert"]) for act in acts] == [
        (act, "chart-screen") for act in ("load", "reload", "unload")
    ]
    assert acts[0]["digest"] == loaded["expert"]["digest"]
    assert acts[0]["expert_set"] == loaded["expert_set"]
    [call] = [
        entry
        for entry in entries
        if entry["event"] == "request" and entry["request_id"] == acts[0]["request_id"]
    ]
    assert (call["method"].split("/")[1], call["caller"]) == ("LoadExpert", "anonymous")


def test_a_failure_says_why(said: dict[str, str], both: Services) -> None:
    text = said["When a call fails"]
    assert "Code: NotFound" in text
    assert '"reason": "UNKNOWN_EXPERT"' in text or '"reason":"UNKNOWN_EXPERT"' in text
    assert text.endswith("exit code 69\n")
    entries = [json.loads(line) for line in both.executor.log.splitlines()]
    [entry] = [entry for entry in entries if entry.get("request_id") == "night-shift-1"]
    assert (entry["code"], entry["reason"]) == ("NOT_FOUND", "UNKNOWN_EXPERT")


def test_tls_and_token(said: dict[str, str]) -> None:
    text = said["TLS and tokens"]
    assert "molora.v1.RouterService\n" in text
    info, health = messages(text[text.index("{") :])
    assert info["serving"]
    assert health == {"status": "SERVING"}


def test_the_metrics_that_are_named_exist(said: dict[str, str], both: Services) -> None:
    """And those of ours that exist are named."""
    shown = ""
    for server in (both.executor, both.router):
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as page:
            shown += page.read().decode()
    exist = set(re.findall(r"^# TYPE ((?:molora|grpc)_\S+)", shown, re.MULTILINE))
    exist = {name for name in exist if not name.endswith("_created")}
    section = DOCUMENT[DOCUMENT.index("## Metrics") : DOCUMENT.index("What to look at first")]
    named = set(re.findall(r"`((?:grpc_server|molora)_[a-z_]+)", section))
    assert named == exist
    assert 'molora_overrides_total{kind="expert"} 2.0' in shown, "one of them by Score"


def doctor(*arguments: str, **environ: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `molora doctor --json` as a process, and what it found by check."""
    done = subprocess.run(
        [sys.executable, "-m", "clients.cli.app", "doctor", "--json", *arguments],
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, {one["check"]: one for one in json.loads(done.stdout)["checks"]}


def settings_of(both: Services) -> dict[str, str]:
    """What the running services were told, as variables."""
    ports = {
        f"MOLORA_{name}_{kind}PORT": address.rpartition(":")[2]
        for name, server in (("EXECUTOR", both.executor), ("ROUTER", both.router))
        for kind, address in (("", server.address), ("METRICS_", server.metrics_address))
    }
    return ports | {
        "MOLORA_EXECUTOR_MODEL": str(both.base),
        "MOLORA_EXECUTOR_EXPERTS_ROOT": str(both.experts_root),
        "MOLORA_ROUTER_BUNDLE": str(both.bundle),
        "MOLORA_ROUTER_EXECUTOR": both.executor.address,
    }


def test_doctor_asks_servers_that_run(both: Services) -> None:
    code, checks = doctor(**settings_of(both))
    assert code == 0, checks
    assert {one["state"] for one in checks.values()} == {"ok"}
    for service in ("executor", "router"):
        assert checks[f"{service}: starts"]["found"] == "it runs already"
        assert f"is the running {service}'s" in checks[f"{service}: gRPC port"]["found"]
    assert checks["experts"]["found"] == "calendar, claim-window"
    assert checks["decision"]["found"].startswith("ROUTER: ")
    assert checks["golden request"]["found"].startswith("calendar answers twice the same")


def test_doctor_starts_what_does_not_run(both: Services) -> None:
    """A router on trial before the executor that runs, which needs no torch here."""
    free = {"MOLORA_ROUTER_PORT": "0", "MOLORA_ROUTER_METRICS_PORT": "0"}
    code, checks = doctor("router", **{**settings_of(both), **free})
    assert code == 0, checks
    assert checks["router: starts"]["found"] == "on trial, with everything loaded"
    assert "executor: starts" not in checks
    assert checks["golden request"]["state"] == "ok"
