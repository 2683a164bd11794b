"""Asks running servers, or servers that it starts as `molora serve` would, one golden request.

Knows how a server is started and asked; knows nothing of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from clients.cli.exits import FIRST_GRPC_EXIT_CODE
from clients.cli.findings import CRASHED, Finding, State, ok
from molora_client import Generation, Molora, MoloraError, RoutingOptions, Tls
from molora_client.channel import channel_options

if TYPE_CHECKING:
    from service_chassis.settings import ServerSettings

# A model of many gigabytes comes from a slow disk, perhaps.
_START_S = 900.0
_PROMPT = "Click the button"
_TOKENS = 8
_NAMES = {"router": "molora.v1.RouterService", "executor": "molora.v1.ExecutorService"}
_SIDES = (320, 240)
# What is asked of a trial server is asked from this machine alone, and leaves nothing behind.
_ALONE: Mapping[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "metrics_host": "127.0.0.1",
    "metrics_port": 0,
    "tls_cert": None,
    "tls_key": None,
    "tls_client_ca": None,
    "tokens_file": None,
}


class NotStarted(Exception):
    """A server did not get ready; the finding says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@contextlib.contextmanager
def started(service: str, settings: ServerSettings, changes: Mapping[str, Any]) -> Iterator[str]:
    """Run a server with these settings on a free loopback port, without TLS and tokens.

    Args:
        service: `router` or `executor`.
        settings: Its settings.
        changes: Settings that are others for the trial.

    Yields:
        Its address.

    Raises:
        NotStarted: It ended or did not get ready.
    """
    from training.server_process import ServerFailed, ServerProcess

    chosen = {**settings.model_dump(mode="json"), **_ALONE, **changes}
    own = {key: value for key, value in os.environ.items() if not key.startswith("MOLORA_")}
    with tempfile.TemporaryDirectory(prefix="molora-doctor-") as folder:
        config = Path(folder) / "settings.yaml"
        config.write_text(json.dumps(chosen), encoding="utf-8")
        flags = ["--config", str(config)]
        with ServerProcess(f"{service}_service", flags, environment=own) as server:
            try:
                address = server.wait_listening(_START_S)
                server.wait_serving(_START_S)
            except ServerFailed as error:
                raise NotStarted(_not_started(service, str(error), server.exit_code)) from None
            yield address


def golden_request(executor: Molora, router: Molora | None) -> list[Finding]:
    """What is loaded, a decision, and the same answer twice.

    Args:
        executor: Asks the executor.
        router: Asks the router; None where there is an executor alone.

    Returns:
        One finding each; the first call that fails is the last.
    """
    findings: list[Finding] = []
    try:
        experts = [expert.name for expert in executor.experts().experts]
        findings.append(ok("experts", ", ".join(experts) or "none: the base alone"))
        if router is not None:
            findings.append(_decision(router))
        findings.append(_answer(executor, router, experts[:1]))
    except MoloraError as error:
        number: int = grpc.StatusCode[error.code].value[0]
        found, remedy = str(error), error.remedy
        findings.append(
            Finding("golden request", State.FAILED, found, remedy, FIRST_GRPC_EXIT_CODE + number)
        )
    return findings


def is_serving(address: str, service: str, tls: Tls | None) -> bool:
    """Whether a `router` or `executor` answers there and is ready."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    options = [*channel_options(address, tls), ("grpc.enable_http_proxy", 0)]
    with (
        grpc.secure_channel(address, tls.credentials(), options)
        if tls
        else grpc.insecure_channel(address, options)
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            asked = health_pb2.HealthCheckRequest(service=_NAMES[service])
            reply = stub.Check(asked, timeout=2.0)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def blank_screen() -> bytes:
    """A PNG that shows a slope from dark to light, and nobody's data."""
    width, height = _SIDES

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = b"".join(b"\0" + bytes([row]) * (3 * width) for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def _not_started(service: str, said: str, exit_code: int | None) -> Finding:
    mark = f"{service}: "
    lines = [line.strip() for line in said.splitlines()]
    own = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
    remedy = f"molora serve {service} tells all of it"
    found = own[-1] if own else lines[0].removesuffix("; it said:")
    # Negative: a signal has ended it.
    code = exit_code if exit_code is not None and exit_code > 0 else CRASHED
    return Finding(f"{service}: starts", State.FAILED, found, remedy, code)


def _decision(router: Molora) -> Finding:
    try:
        routed = router.route(_PROMPT, blank_screen())
    except MoloraError as error:
        if error.reason != "ABSTAINED":
            raise
        return ok("decision", "abstains from a blank screen, as it should")
    gates = ", ".join(f"{name} {gate:.2f}" for name, gate in routed.gates.items())
    return ok("decision", f"{routed.reason.value}: {gates or 'no expert'}")


def _answer(executor: Molora, router: Molora | None, experts: list[str]) -> Finding:
    first, again = (_ask(executor, router, experts) for _ in range(2))
    check = "golden request"
    if first.token_ids != again.token_ids:
        remedy = "the device or its driver computes differently each time; do not serve on it"
        return Finding(check, State.FAILED, "two equal requests got different answers", remedy)
    if list(first.applied.gates) != experts:
        remedy = "report it with the output of molora doctor --json"
        return Finding(check, State.FAILED, "another expert ran than was asked for", remedy)
    ran = ", ".join(experts) or "the base"
    wait_ms = again.timings.time_to_first_token_ms
    return ok(check, f"{ran} answers twice the same, first token after {wait_ms:.0f} ms")


def _ask(executor: Molora, router: Molora | None, experts: list[str]) -> Generation:
    screen = blank_screen()
    if router is not None and experts:
        options = RoutingOptions(expert_override=experts[0])
        predicted = router.predict(_PROMPT, screen, options=options, max_new_tokens=_TOKENS)
        return predicted.generation
    if experts:
        return executor.generate(_PROMPT, screen, expert=experts[0], max_new_tokens=_TOKENS)
    return executor.generate(_PROMPT, screen, base_only=True, max_new_tokens=_TOKENS)
