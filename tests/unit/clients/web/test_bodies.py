"""Bodies over real HTTP: what is refused, how early, and callers who leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from clients.web import app, asks
from tests.support.bridge import Log, RunningBridge, running_bridge, until
from tests.support.stub_services import Reply, StubServices, predict_events


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"expert":' + b"9" * 9999],
    )
    def test_what_is_no_object(self, bridge: RunningBridge, body: bytes) -> None:
        answered = bridge.post("/infer_web", body)
        assert (answered.status, answered.json["reason"]) == (400, "NOT_JSON")

    def test_an_object_without_its_fields(self, bridge: RunningBridge, stub: StubServices) -> None:
        for path in ("/infer_web", "/", "/inspect"):
            answered = bridge.post(path, {})
            assert (answered.status, answered.json["reason"]) == (400, "PROMPT_MISSING")
        assert not stub.calls

    def test_one_that_says_it_is_too_large_is_refused_unread(self, stub: StubServices) -> None:
        with running_bridge(stub.address, stub.address, max_body_bytes=2048) as bridge:
            sent = b"POST /infer_web HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2049\r\n\r\n"
            assert refused_early(bridge, sent) == (413, "BODY_TOO_LARGE")
            assert bridge.post("/", b" " * 2048).json["reason"] == "NOT_JSON"

    def test_one_that_never_ends_is_read_to_the_limit(self, stub: StubServices) -> None:
        with running_bridge(stub.address, stub.address, max_body_bytes=2048) as bridge:
            head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            chunk = b"400\r\n" + b" " * 0x400 + b"\r\n"
            assert refused_early(bridge, head + 3 * chunk) == (413, "BODY_TOO_LARGE")

    def test_one_that_does_not_come(
        self, bridge: RunningBridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(asks, "BODY_TIMEOUT_S", 0.1)
        sent = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        assert refused_early(bridge, sent) == (408, "BODY_TOO_SLOW")

    async def test_a_caller_who_leaves_ends_the_work(self) -> None:
        ended = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        class Leaving:
            async def receive(self) -> dict[str, str]:
                await asyncio.sleep(0.01)
                return {"type": "http.disconnect"}

        with pytest.raises(ClientDisconnect):
            await app._while_connected(Leaving(), work())
        assert ended.is_set()

    def test_a_caller_who_leaves_is_logged_as_such(
        self,
        bridge: RunningBridge,
        stub: StubServices,
        ask: dict[str, Any],
        log: Log,
    ) -> None:
        stub.script["Predict"] = [Reply(tuple(predict_events(stub.address)), delay_s=0.5)]
        body = json.dumps(ask).encode()
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", bridge.port), 10) as client:
            client.sendall(head.encode() + body)
            until(lambda: stub.seen("Predict"))
        [line] = log.lines(1)
        assert (line["path"], line["status"], line["reason"]) == ("/", 499, "CALLER_LEFT")


def refused_early(bridge: RunningBridge, sent: bytes) -> tuple[int, str]:
    """Status and reason of the answer to a request that is never sent to its end."""
    with socket.create_connection(("127.0.0.1", bridge.port), 10) as client:
        client.sendall(sent)
        received = b""
        with contextlib.suppress(ConnectionError):
            while b'"request_id"' not in received and (piece := client.recv(4096)):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["reason"]
