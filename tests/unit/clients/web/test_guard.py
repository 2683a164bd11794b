"""What every request passes: origins, hosts, headers, the log."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from clients.web.asks import Ask
from clients.web.bridge import Bridge
from clients.web.errors import REFUSALS
from clients.web.guard import HEADERS
from tests.support.bridge import Log, RunningBridge, running_bridge
from tests.support.stub_services import Fail, StubServices

CANARY = "Quillabeth-Vantongeren"
TEXTS = {text for _, text in REFUSALS.values()}


class TestOrigins:
    def test_other_origins_are_refused_before_anything_is_read(
        self, bridge: RunningBridge, stub: StubServices, ask: dict[str, Any]
    ) -> None:
        for origin in (
            *("https://elsewhere.example", "null", "http://127.0.0.1:1", "file://", ""),
            f"ftp://127.0.0.1:{bridge.port}",
        ):
            for path in ("/infer_web", "/", "/inspect"):
                answered = bridge.post(path, ask, Origin=origin)
                assert (answered.status, answered.json["reason"]) == (403, "ORIGIN_NOT_ALLOWED")
                assert "access-control-allow-origin" not in answered.headers
            assert bridge.get("/inspect/decisions", Origin=origin).status == 403
        assert not stub.calls

    def test_the_bridges_own_page_may_call(
        self, bridge: RunningBridge, ask: dict[str, Any]
    ) -> None:
        assert bridge.post("/", ask, Origin=bridge.url).status == 200

    def test_configured_origins_may_call(self, stub: StubServices, ask: dict[str, Any]) -> None:
        mine = "https://claims.example"
        with running_bridge(stub.address, stub.address, allowed_origins=(mine,)) as bridge:
            answered = bridge.post("/infer_web", ask, Origin=mine)
            assert answered.status == 200
            assert answered.headers["access-control-allow-origin"] == mine
            assert "origin" in answered.headers["vary"].lower()
            preflight = {
                "Origin": mine,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "content-type",
                "Access-Control-Request-Private-Network": "true",
            }
            answered = bridge.ask("OPTIONS", "/infer_web", headers=preflight)
            assert answered.status == 200
            assert answered.headers["access-control-allow-private-network"] == "true"
            assert "POST" in answered.headers["access-control-allow-methods"]
            assert bridge.post("/", ask, Origin="https://other.example").status == 403
            # What a proxy in front of the bridge passes on.
            assert bridge.post("/", ask, Host="claims.example", Origin=mine).status == 200

    def test_another_name_for_this_machine_is_not_served(
        self, bridge: RunningBridge, ask: dict[str, Any]
    ) -> None:
        for host in ("elsewhere.example", "elsewhere.example:8080", "", "[::1", "localhost.evil"):
            answered = bridge.post("/", ask, Host=host, Origin=f"http://{host}")
            assert (answered.status, answered.json["reason"]) == (421, "HOST_NOT_ALLOWED")
        for host in ("localhost", "127.0.0.1:1", "[::1]:8080", "LOCALHOST:80"):
            assert bridge.get("/health", Host=host).status == 200

    def test_every_answer_has_the_headers(self, bridge: RunningBridge) -> None:
        for answered in (
            *(bridge.get("/"), bridge.get("/static/inspector.js"), bridge.get("/health")),
            *(bridge.get("/nothing"), bridge.get("/health", Host="elsewhere")),
        ):
            assert {name: answered.headers.get(name) for name in HEADERS} == HEADERS
        assert bridge.get("/health").headers["cache-control"] == "no-store"
        assert bridge.get("/static/inspector.js").headers["cache-control"] == "no-cache"


class TestLog:
    def test_a_bug_is_logged_by_place_and_answered_with_nothing(
        self,
        bridge: RunningBridge,
        ask: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
        log: Log,
    ) -> None:
        async def broken(self: Bridge, ask: Ask) -> None:
            raise RuntimeError(CANARY + ask.prompt)

        monkeypatch.setattr(Bridge, "infer", broken)
        answered = bridge.post("/", ask)
        assert (answered.status, answered.json["reason"]) == (500, "INTERNAL")
        assert answered.json["output"] is None
        lines = log.lines(2)
        assert [line["event"] for line in lines] == ["crash", "request"]
        assert lines[0]["type"] == "RuntimeError"
        assert any(place.startswith("clients.web.app:") for place in lines[0]["where"])
        assert CANARY not in str(lines)

    def test_nothing_that_a_caller_wrote_is_logged(
        self,
        bridge: RunningBridge,
        stub: StubServices,
        ask: dict[str, Any],
        log: Log,
    ) -> None:
        ask["prompt"] = CANARY
        bridge.post("/infer_web", ask)
        bridge.post("/", {**ask, "adapter": CANARY, "expert": 0})
        bridge.post("/inspect", {**ask, "image_b64": CANARY})
        stub.script["Predict"] = [
            Fail(grpc.StatusCode.INTERNAL, CANARY, metadata={"field": CANARY})
        ]
        assert CANARY not in bridge.post("/", ask).raw.decode()
        bridge.get(f"/{CANARY}?{CANARY}", **{"X-Request-Id": CANARY, "User-Agent": CANARY})
        bridge.ask(CANARY, "/")
        bridge.get("/", Host=CANARY)
        lines = log.lines(7)
        assert {(line["service"], line["event"]) for line in lines} == {("web", "request")}
        assert CANARY not in str(lines)


def test_paths_and_methods_that_are_not_there(bridge: RunningBridge) -> None:
    for method, path, status, reason in (
        ("GET", f"/{CANARY}", 404, "UNKNOWN_PATH"),
        ("GET", "/static/nothing.js", 404, "UNKNOWN_PATH"),
        ("GET", "/static/../settings.py", 404, "UNKNOWN_PATH"),
        ("GET", "/static/%2e%2e/settings.py", 404, "UNKNOWN_PATH"),
        ("DELETE", "/", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/infer_web", 405, "METHOD_NOT_ALLOWED"),
    ):
        answered = bridge.ask(method, path)
        assert (answered.status, answered.json["reason"]) == (status, reason)
        assert answered.json["error"] in TEXTS
